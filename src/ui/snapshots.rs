//! The singular values of a training's layers, over its steps.

use std::sync::Arc;

use crate::engine::spectrum;

/// Snapshots that are kept; even, so that thinning keeps the newest.
const MOST: usize = 400;

/// Of one step.
#[derive(Clone, Debug)]
pub struct Snapshot {
    pub step: usize,
    /// kohya's names, shared while they stay the same.
    pub layers: Arc<[String]>,
    /// Of each layer, non-increasing.
    pub values: Vec<Vec<f32>>,
    /// Mean over the layers.
    pub effective_rank: f64,
    /// Σσ² of all layers.
    pub energy: f64,
    pub strongest: f32,
}

impl Snapshot {
    pub fn new(step: usize, layers: Arc<[String]>, values: Vec<Vec<f32>>) -> Self {
        let wide = |values: &Vec<f32>| values.iter().map(|&x| f64::from(x)).collect::<Vec<_>>();
        let ranks: f64 = values.iter().map(|values| spectrum::effective_rank(&wide(values))).sum();
        Self {
            step,
            effective_rank: ranks / values.len().max(1) as f64,
            energy: values.iter().flatten().map(|&x| f64::from(x).powi(2)).sum(),
            strongest: values.iter().flatten().copied().fold(0.0, f32::max),
            layers,
            values,
        }
    }
}

/// At most [`MOST`], evenly over the steps, and always the newest.
#[derive(Debug)]
pub struct Snapshots {
    kept: Vec<Snapshot>,
    /// Every how many heard snapshots one is kept for good.
    stride: usize,
    /// Heard after the last one that is kept for good.
    since: usize,
}

impl Default for Snapshots {
    fn default() -> Self {
        Self { kept: Vec::new(), stride: 1, since: 0 }
    }
}

impl Snapshots {
    /// By step.
    pub fn all(&self) -> &[Snapshot] {
        &self.kept
    }

    pub fn hear<'a>(&mut self, step: usize, layers: impl IntoIterator<Item = (&'a str, &'a [f32])>) {
        let (names, values): (Vec<&str>, Vec<Vec<f32>>) =
            layers.into_iter().map(|(name, values)| (name, values.to_vec())).unzip();
        // A training that went back repeats its steps.
        while self.kept.pop_if(|last| last.step >= step).is_some() {
            self.since = 0;
        }
        let known = self.kept.last().map(|last| Arc::clone(&last.layers)).filter(|known| known.iter().eq(&names));
        let layers = known.unwrap_or_else(|| names.into_iter().map(str::to_owned).collect());
        if self.since > 0 {
            self.kept.pop();
        }
        self.kept.push(Snapshot::new(step, layers, values));
        self.since = (self.since + 1) % self.stride;
        if self.kept.len() > MOST {
            self.thin();
        }
    }

    fn thin(&mut self) {
        let mut place = 0;
        self.kept.retain(|_| {
            place += 1;
            place % 2 == 1
        });
        // The last of the old stride was at an odd place: it is gone, and the newest is further from its forerunner.
        if self.since > 0 {
            self.since += self.stride;
        }
        self.stride *= 2;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hear(snapshots: &mut Snapshots, step: usize) {
        snapshots.hear(step, [("a", &[2.0, 0.0][..]), ("b", &[1.0, 1.0][..])]);
    }

    #[test]
    fn memory_is_bounded_and_steps_stay_even() {
        let mut snapshots = Snapshots::default();
        for i in 0..5000 {
            hear(&mut snapshots, 5 * i);
            let kept = snapshots.all();
            assert!(kept.len() <= MOST && kept[0].step == 0 && kept[kept.len() - 1].step == 5 * i);
            let gaps: Vec<usize> = kept.windows(2).map(|pair| pair[1].step - pair[0].step).collect();
            let (last, others) = gaps.split_last().unwrap_or((&0, &[]));
            assert!(others.windows(2).all(|pair| pair[0] == pair[1]), "at {i}: {others:?}");
            assert!(others.first().is_none_or(|gap| last <= gap), "at {i}: {last} after {others:?}");
        }
        assert!(snapshots.all().len() > MOST / 2);
        assert!(snapshots.all().iter().all(|s| Arc::ptr_eq(&s.layers, &snapshots.all()[0].layers)));
    }

    #[test]
    fn going_back_replaces_what_came_after() {
        let mut snapshots = Snapshots::default();
        for step in [10, 20, 30, 20] {
            hear(&mut snapshots, step);
        }
        assert_eq!(snapshots.all().iter().map(|s| s.step).collect::<Vec<_>>(), [10, 20]);
    }

    #[test]
    fn a_snapshot_sums_itself_up() {
        let mut snapshots = Snapshots::default();
        hear(&mut snapshots, 1);
        let snapshot = &snapshots.all()[0];
        assert!((snapshot.effective_rank - 1.5).abs() < 1e-9);
        assert!((snapshot.energy - 6.0).abs() < 1e-9 && (snapshot.strongest - 2.0).abs() < 1e-9);
    }
}
