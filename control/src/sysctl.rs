//! Kernel settings, with a record of what was there before.
