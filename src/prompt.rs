//! Body bytes → [`Prompt`].
