//! What the kernel shall hold for a network, and the steps from what it holds.
