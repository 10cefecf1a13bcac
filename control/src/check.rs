//! Does this node do what it promises?
