//! next → decode → order → apply.
