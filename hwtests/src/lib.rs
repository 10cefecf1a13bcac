//! Tests of uvn on real kernels and NICs: nodes, users and probes.
