//! `Plan` to machine.
