//! Changes that depend on the model's own weight: they become differences `W' − W` where the model is known.

use faer::Mat;

use crate::engine::io::lora_file::kronecker::Kronecker;
use crate::engine::io::lora_file::parts::{Array, Wrong};
use crate::engine::io::lora_file::{Difference, LoraLayer};

/// A layer as the model has it.
#[derive(Clone, Debug)]
pub struct Base {
    /// `[out, in]` or `[out, channels, kh, kw]`, row-major.
    pub weight: Vec<f32>,
    pub shape: Vec<usize>,
    pub bias: Option<Vec<f32>>,
}

/// A side of a weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Axis {
    Output,
    Input,
}

/// A method's own parameters.
#[derive(Clone, Debug, PartialEq)]
pub enum Relative {
    /// DoRA: `W' = m ∘ (W + ΔW) / ‖W + ΔW‖`, the norm over all that shares a place on the axis.
    Magnitude {
        delta: Box<Delta>,
        m: Vec<f32>,
        axis: Axis,
    },
    Rotation(Rotation),
    /// (IA)³: `W' = (1 + more) ∘ W`, and the bias likewise where it goes with the output.
    Scaling {
        more: Vec<f32>,
        axis: Axis,
        with_bias: bool,
    },
    /// GLoRA: `ΔW = scale · (W·a + b)`, `a [channels, channels]` at every tap of a kernel.
    General {
        a: Array,
        b: Array,
        scale: f64,
    },
}

/// `ΔW` under a magnitude.
#[derive(Clone, Debug, PartialEq)]
pub enum Delta {
    Pair(LoraLayer),
    Whole(Difference),
    Kronecker(Kronecker),
}

/// `W' = rescale ∘ Rₙ…R₁·W` on one side of the weight.
#[derive(Clone, Debug, PartialEq)]
pub struct Rotation {
    pub axis: Axis,
    pub turns: Vec<Turn>,
    /// One factor for each output.
    pub rescale: Option<Vec<f32>>,
}

/// One block-diagonal rotation.
#[derive(Clone, Debug, PartialEq)]
pub struct Turn {
    pub order: Order,
    /// A lone one is used for all.
    pub blocks: Vec<Mat<f64>>,
}

/// In which order rows are cut into blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// As they are.
    Neighbours,
    /// Row k beside row k + this (LyCORIS).
    Apart(usize),
    /// Pᵀ·x, where P takes from groups of `group` the chunks of even number before those of odd (PEFT).
    EvenFirst { group: usize, chunk: usize },
}

impl Order {
    /// Where each row of `n` comes from; `None` where groups do not come out even.
    fn rows(self, n: usize) -> Option<Vec<usize>> {
        match self {
            Self::Neighbours => Some((0..n).collect()),
            Self::Apart(stride) => {
                let groups = |group| (0..stride).flat_map(move |k| [group + k, group + stride + k]);
                n.is_multiple_of(2 * stride).then(|| (0..n).step_by(2 * stride).flat_map(groups).collect())
            }
            Self::EvenFirst { group, chunk } => {
                let half = move |start: usize, odd: usize| {
                    (start + odd * chunk..start + group).step_by(2 * chunk).flat_map(move |at| at..at + chunk)
                };
                let groups = (0..n).step_by(group.max(1)).flat_map(|start| half(start, 0).chain(half(start, 1)));
                let fits = chunk > 0 && group.is_multiple_of(2 * chunk) && n.is_multiple_of(group);
                let taken: Vec<usize> = if fits { groups.collect() } else { return None };
                let mut rows = vec![0; n];
                taken.iter().enumerate().for_each(|(row, &from)| rows[from] = row);
                Some(rows)
            }
        }
    }
}

impl Relative {
    /// `W' − W`, and what becomes of the bias.
    pub fn difference(&self, base: &Base) -> Result<Difference, Wrong> {
        let w = Weight::of(base)?;
        let mut bias = None;
        let changed = match self {
            Self::Magnitude { delta, m, axis } => w.with_magnitude(&delta.values(), m, *axis)?,
            Self::Rotation(rotation) => rotation.turned(&w)?,
            Self::Scaling { more, axis, with_bias } => {
                w.fits(more.len(), *axis)?;
                if *with_bias {
                    bias = base.bias.as_ref().map(|b| b.iter().zip(more).map(|(b, l)| b * l).collect());
                }
                return Ok(Difference {
                    weight: w.each(|o, c, x| f64::from(more[pick(*axis, o, c)]) * x),
                    shape: base.shape.clone(),
                    bias,
                });
            }
            Self::General { a, b, scale } => {
                let weight = w.general(a, b, *scale)?;
                return Ok(Difference { weight, shape: base.shape.clone(), bias });
            }
        };
        let weight = changed.iter().zip(&base.weight).map(|(new, &old)| (new - f64::from(old)) as f32).collect();
        Ok(Difference { weight, shape: base.shape.clone(), bias })
    }

    /// Whether the bias changes with the weight.
    pub fn moves_bias(&self) -> bool {
        matches!(self, Self::Scaling { with_bias: true, .. })
    }

    /// The numbers it holds.
    pub fn numbers(&self) -> usize {
        match self {
            Self::Magnitude { delta, m, .. } => m.len() + delta.numbers(),
            Self::Rotation(Rotation { turns, rescale, .. }) => {
                let blocks = turns.iter().flat_map(|turn| &turn.blocks).map(|b| b.nrows() * b.ncols());
                blocks.sum::<usize>() + rescale.as_ref().map_or(0, Vec::len)
            }
            Self::Scaling { more, .. } => more.len(),
            Self::General { a, b, .. } => a.values.len() + b.values.len(),
        }
    }
}

impl Delta {
    fn values(&self) -> Vec<f32> {
        match self {
            Self::Pair(layer) => layer.product().weight,
            Self::Whole(difference) => difference.weight.clone(),
            Self::Kronecker(factors) => factors.product().weight,
        }
    }

    fn numbers(&self) -> usize {
        match self {
            Self::Pair(layer) => layer.down.len() + layer.up.len(),
            Self::Whole(difference) => difference.weight.len(),
            Self::Kronecker(factors) => factors.numbers(),
        }
    }
}

fn pick(axis: Axis, output: usize, channel: usize) -> usize {
    match axis {
        Axis::Output => output,
        Axis::Input => channel,
    }
}

/// A weight as `[out, channels, taps]`.
struct Weight<'a> {
    values: &'a [f32],
    out: usize,
    channels: usize,
    taps: usize,
}

impl<'a> Weight<'a> {
    fn of(base: &'a Base) -> Result<Self, Wrong> {
        match base.shape[..] {
            [out, channels, ref kernel @ ..] if !base.shape.contains(&0) => {
                Ok(Self { values: &base.weight, out, channels, taps: kernel.iter().product() })
            }
            _ => Err(format!("the model's tensor has the shape {:?}", base.shape)),
        }
    }

    fn length(&self, axis: Axis) -> usize {
        pick(axis, self.out, self.channels)
    }

    fn fits(&self, found: usize, axis: Axis) -> Result<(), Wrong> {
        let here = self.length(axis);
        if found == here { Ok(()) } else { Err(format!("it has {found} numbers for a side of {here}")) }
    }

    /// A function of each number, its output and its channel.
    fn each(&self, f: impl Fn(usize, usize, f64) -> f64) -> Vec<f32> {
        let taps = self.taps;
        let rows = self.values.chunks_exact(taps).enumerate();
        rows.flat_map(|(at, taps)| taps.iter().map(move |&x| (at, x)))
            .map(|(at, x)| f(at / self.channels, at % self.channels, f64::from(x)) as f32)
            .collect()
    }

    fn with_magnitude(&self, delta: &[f32], m: &[f32], axis: Axis) -> Result<Vec<f64>, Wrong> {
        self.fits(m.len(), axis)?;
        if delta.len() != self.values.len() {
            return Err(format!("its change has {} numbers for a weight of {}", delta.len(), self.values.len()));
        }
        let mut sum: Vec<f64> = self.values.iter().zip(delta).map(|(&w, &d)| f64::from(w) + f64::from(d)).collect();
        let mut squares = vec![0.0; m.len()];
        let place = |at: usize| pick(axis, at / self.channels, at % self.channels);
        for (at, taps) in sum.chunks_exact(self.taps).enumerate() {
            squares[place(at)] += taps.iter().map(|x| x * x).sum::<f64>();
        }
        let scale = |place: usize| {
            let norm: f64 = squares[place];
            // A row of zeros has no direction to keep.
            if norm > 0.0 { f64::from(m[place]) / norm.sqrt() } else { 0.0 }
        };
        for (at, taps) in sum.chunks_exact_mut(self.taps).enumerate() {
            let by = scale(place(at));
            for x in taps {
                *x *= by;
            }
        }
        Ok(sum)
    }

    /// `scale · (Σᵢ W[o,i,…]·a[i,j] + b)`.
    fn general(&self, a: &Array, b: &Array, scale: f64) -> Result<Vec<f32>, Wrong> {
        let (out, channels, taps) = (self.out, self.channels, self.taps);
        self.fits(a.rows(), Axis::Input)?;
        if b.values.len() != self.values.len() {
            return Err(format!("its change has {} numbers for a weight of {}", b.values.len(), self.values.len()));
        }
        let mut sums: Vec<f64> = b.values.iter().map(|&b| f64::from(b)).collect();
        for o in 0..out {
            for i in 0..channels {
                let from = &self.values[(o * channels + i) * taps..][..taps];
                for (j, &a) in a.row(i).iter().enumerate() {
                    let to = &mut sums[(o * channels + j) * taps..][..taps];
                    to.iter_mut().zip(from).for_each(|(to, &w)| *to += f64::from(w) * f64::from(a));
                }
            }
        }
        Ok(sums.into_iter().map(|sum| (scale * sum) as f32).collect())
    }
}

impl Rotation {
    /// `R·W`, or `(R·Wᵀ)ᵀ` over all inputs of a row: of a kernel's every tap.
    fn turned(&self, w: &Weight<'_>) -> Result<Vec<f64>, Wrong> {
        let columns = w.channels * w.taps;
        let all = |i: usize, j: usize| f64::from(w.values[i * columns + j]);
        let mut x = match self.axis {
            Axis::Output => Mat::from_fn(w.out, columns, all),
            Axis::Input => Mat::from_fn(columns, w.out, |i, j| all(j, i)),
        };
        for turn in &self.turns {
            turn.apply(&mut x)?;
        }
        let mut changed: Vec<f64> = match self.axis {
            Axis::Output => (0..w.out).flat_map(|i| x.row(i).iter().copied().collect::<Vec<_>>()).collect(),
            Axis::Input => (0..w.out).flat_map(|i| x.col(i).iter().copied().collect::<Vec<_>>()).collect(),
        };
        if let Some(rescale) = &self.rescale {
            w.fits(rescale.len(), Axis::Output)?;
            for (row, &by) in changed.chunks_exact_mut(columns).zip(rescale) {
                for x in row {
                    *x *= f64::from(by);
                }
            }
        }
        Ok(changed)
    }
}

impl Turn {
    /// Turns blocks of rows.
    fn apply(&self, x: &mut Mat<f64>) -> Result<(), Wrong> {
        let (b, n) = (self.blocks.first().map_or(0, Mat::nrows), x.nrows());
        let count = self.blocks.len();
        let order = self.order.rows(n).filter(|_| b > 0 && n.is_multiple_of(b) && (count == 1 || count * b == n));
        let order = order.ok_or_else(|| format!("its {count} blocks of {b} do not fit a side of {n}"))?;
        for (block, places) in order.chunks_exact(b).enumerate() {
            let turn = &self.blocks[block % count];
            let rows = Mat::from_fn(b, x.ncols(), |i, j| x[(places[i], j)]);
            let turned = turn * rows;
            for (i, &place) in places.iter().enumerate() {
                x.row_mut(place).copy_from(turned.row(i));
            }
        }
        Ok(())
    }
}
