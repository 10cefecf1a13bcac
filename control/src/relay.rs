//! Services that listen on loopback only, made reachable inside networks.
