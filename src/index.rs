//! Who holds which block.
