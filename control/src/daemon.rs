//! The daemon: attach, detach, reconcile.
