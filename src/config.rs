//! What an operator may decide; validated, every complaint at once.
