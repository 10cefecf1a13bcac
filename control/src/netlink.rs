//! Links, addresses, routes and rules: the only place that speaks rtnetlink.
