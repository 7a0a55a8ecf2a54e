//! Streams, deadlines, back-pressure.
