//! The TOML file of `uvnd`: `/etc/uvn/uvn.toml`.
