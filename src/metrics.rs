//! What an operator may watch: every family is declared here.
