//! What is said between `uvnd` and `uvn`, PAM, SPANK.
