//! Who holds which user's network, and until when.
