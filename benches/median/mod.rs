//! How long a call takes.

use std::time::Instant;

const WARM_UP: usize = 3;
const RUNS: usize = 15;

/// Median seconds of one call.
pub fn median(mut call: impl FnMut()) -> f64 {
    let mut seconds: Vec<f64> = (0..WARM_UP + RUNS)
        .map(|_| {
            let start = Instant::now();
            call();
            start.elapsed().as_secs_f64()
        })
        .skip(WARM_UP)
        .collect();
    seconds.sort_by(f64::total_cmp);
    seconds[RUNS / 2]
}
