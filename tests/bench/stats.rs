//! A against B in one run: interleaved, paired, with an interval.

use std::future::Future;
use std::time::{Duration, Instant};

/// One comparison: the median of the paired ratios A/B and its 95 % interval.
pub struct Comparison {
    /// What was compared.
    pub name: String,
    /// The median of A.
    pub a: Duration,
    /// The median of B.
    pub b: Duration,
    /// A divided by B.
    pub ratio: f64,
    /// The lower end of the interval.
    pub low: f64,
    /// The upper end of the interval.
    pub high: f64,
    /// How many pairs.
    pub pairs: usize,
}

impl Comparison {
    /// From pairs of times for the same work.
    pub fn of(name: &str, pairs: &[(Duration, Duration)]) -> Self {
        let ratios: Vec<f64> =
            pairs.iter().map(|(a, b)| a.as_secs_f64() / b.as_secs_f64()).collect();
        let (low, high) = interval(&ratios);
        Self {
            name: name.to_owned(),
            a: middle(pairs.iter().map(|pair| pair.0).collect()),
            b: middle(pairs.iter().map(|pair| pair.1).collect()),
            ratio: median(&ratios),
            low,
            high,
            pairs: pairs.len(),
        }
    }

    /// For programs.
    pub fn json(&self) -> serde_json::Value {
        serde_json::json!({
            "name": self.name, "a_usec": self.a.as_micros(), "b_usec": self.b.as_micros(),
            "ratio": self.ratio, "low": self.low, "high": self.high, "pairs": self.pairs,
        })
    }
}

impl std::fmt::Display for Comparison {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let micros = |d: Duration| d.as_micros();
        write!(
            f,
            "{:<58} {:>9} µs {:>9} µs  {:>5.2} [{:.2}, {:.2}]  {} pairs",
            self.name,
            micros(self.a),
            micros(self.b),
            self.ratio,
            self.low,
            self.high,
            self.pairs
        )
    }
}

/// Runs A and B in turns (A B, then B A), after warming both up.
pub async fn interleave<A, B>(
    pairs: usize,
    mut a: impl FnMut() -> A,
    mut b: impl FnMut() -> B,
) -> Vec<(Duration, Duration)>
where
    A: Future<Output = ()>,
    B: Future<Output = ()>,
{
    for _ in 0..3 {
        a().await;
        b().await;
    }
    let mut times = Vec::with_capacity(pairs);
    for turn in 0..pairs {
        if turn % 2 == 0 {
            let first = timed(a()).await;
            times.push((first, timed(b()).await));
        } else {
            let first = timed(b()).await;
            times.push((timed(a()).await, first));
        }
    }
    times
}

async fn timed(work: impl Future<Output = ()>) -> Duration {
    let begun = Instant::now();
    work.await;
    begun.elapsed()
}

/// The median of some ratios.
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[sorted.len() / 2]
}

fn middle(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
}

/// The 95 % interval of the median by resampling; the generator is fixed, so a run can be repeated.
fn interval(values: &[f64]) -> (f64, f64) {
    let mut state: u64 = 0x9E37_79B9_7F4A_7C15;
    let mut next = || {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(state >> 33).unwrap_or(0)
    };
    let mut medians: Vec<f64> = (0..2000)
        .map(|_| {
            let sample: Vec<f64> = values.iter().map(|_| values[next() % values.len()]).collect();
            median(&sample)
        })
        .collect();
    medians.sort_by(f64::total_cmp);
    (medians[50], medians[1949])
}
