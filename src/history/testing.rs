//! What the tests of the history share.

use jiff::Timestamp;

use super::Place;

/// Far ahead, so that nothing is too old to be kept.
pub fn at(second: i64) -> Timestamp {
    Timestamp::from_second(4_000_000_000 + second).unwrap()
}

pub fn place(stream: &str, sequence: u64) -> Place {
    Place { stream: stream.into(), sequence }
}
