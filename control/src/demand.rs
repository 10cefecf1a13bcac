//! Networks made because a peer sent to them.
