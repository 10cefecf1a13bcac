//! The cgroup programs that keep every socket in its user's network.
