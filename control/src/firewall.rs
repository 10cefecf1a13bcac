//! The nftables table: NAT, and what socket programs cannot see.
