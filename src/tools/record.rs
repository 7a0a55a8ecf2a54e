//! `kvscout record`.
