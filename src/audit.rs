//! Predicted against reported.
