//! The `uvn-dataplane` of each NIC: started, fed, reconciled.
