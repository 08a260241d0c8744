//! What a layer of an adapter file can be: one row for each kind.

mod full;
mod glora;
mod ia3;
mod loha;
mod lokr;
mod lora;
mod oft;

use std::collections::BTreeSet;

use crate::engine::io::lora_file::kronecker::Kronecker;
use crate::engine::io::lora_file::parts::{Parts, Wrong};
use crate::engine::io::lora_file::relative::Relative;
use crate::engine::io::lora_file::{Difference, LoraLayer};

/// A layer as it was read.
#[derive(Clone, Debug, PartialEq)]
pub enum Read {
    Pair(LoraLayer),
    Whole(Difference),
    Kronecker(Kronecker),
    /// It depends on the model's own weight.
    Relative(Relative),
}

/// One kind of layer. Source of all keys: LyCORIS `lycoris/modules/*.py`, PEFT `tuners/*/layer.py`.
pub struct Kind {
    /// With its article.
    pub title: &'static str,
    /// Any of these tells it.
    pub marks: &'static [&'static str],
    /// What else a layer of this kind may have.
    pub parts: &'static [&'static str],
    pub read: fn(&Parts<'_>) -> Result<Read, Wrong>,
}

/// DoRA's, as LyCORIS and as PEFT call it.
const MAGNITUDES: [&str; 2] = ["dora_scale", "magnitude"];

/// Parts that go with every kind: a magnitude, and a difference of the bias.
pub const WITH_ALL: [&str; 3] = [MAGNITUDES[0], MAGNITUDES[1], "diff_b"];

pub const KINDS: &[Kind] = &[
    Kind { title: "a LoRA", marks: &["lora_down", "lora_up"], parts: &["lora_mid", "alpha"], read: lora::read },
    Kind {
        title: "a LoHa",
        marks: &["hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"],
        parts: &["hada_t1", "hada_t2", "alpha"],
        read: loha::read,
    },
    Kind {
        title: "a LoKr",
        marks: &["lokr_w1", "lokr_w2", "lokr_w1_a", "lokr_w1_b", "lokr_w2_a", "lokr_w2_b"],
        parts: &["lokr_t2", "alpha"],
        read: lokr::read,
    },
    Kind { title: "an OFT", marks: &["oft_blocks", "oft_diag"], parts: &["rescale", "alpha"], read: oft::output_side },
    Kind { title: "an OFT", marks: &["oft_R"], parts: &["oft_scaled", "alpha"], read: oft::input_side },
    Kind { title: "a BOFT", marks: &["boft_R"], parts: &["boft_s", "alpha"], read: oft::butterflies },
    Kind { title: "an (IA)³", marks: &["on_input", "ia3_l"], parts: &["weight"], read: ia3::read },
    Kind { title: "a GLoRA", marks: &["a1", "a2", "b1", "b2"], parts: &["alpha"], read: glora::read },
    Kind { title: "a full difference", marks: &["diff"], parts: &["alpha"], read: full::read },
];

/// The row of a layer with these parts.
pub fn of(parts: &Parts<'_>) -> Option<&'static Kind> {
    row(|mark| parts.has(mark))
}

/// What a file is whose layers have these parts, with its article; `None` where no row has them.
pub fn title(parts: &BTreeSet<&str>) -> Option<&'static str> {
    let has = |part: &str| parts.contains(part);
    match row(has) {
        // The one kind that a magnitude gives a name of its own.
        Some(kind) if kind.marks.contains(&"lora_down") && MAGNITUDES.iter().any(|part| has(part)) => Some("a DoRA"),
        Some(kind) => Some(kind.title),
        // Of biases alone.
        None => has("diff_b").then_some("a full difference"),
    }
}

fn row(has: impl Fn(&str) -> bool) -> Option<&'static Kind> {
    KINDS.iter().find(|kind| kind.marks.iter().any(|mark| has(mark)))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use crate::engine::io::lora_file::LoraFile;
    use crate::engine::io::lora_file::relative::Base;
    use crate::engine::io::safetensors::{Dtype, Tensor, save};
    use crate::engine::random::Philox;

    const MODULE: &str = "lora_unet_mid_block_x";

    /// A layer's tensors by part, with an element by its indices.
    struct Layer(BTreeMap<&'static str, (Vec<usize>, Vec<f32>)>);

    impl Layer {
        fn new(shapes: &[(&'static str, &[usize])]) -> Self {
            let random = Philox::new(3);
            let draw = |(i, (part, shape)): (usize, &(&'static str, &[usize]))| {
                let n: usize = shape.iter().product();
                (*part, (shape.to_vec(), random.normal(i as u32, n).iter().map(|x| 0.4 * x).collect()))
            };
            Self(shapes.iter().enumerate().map(draw).collect())
        }

        fn at(&self, part: &str, index: &[usize]) -> f64 {
            let (shape, values) = &self.0[part];
            f64::from(values[index.iter().zip(shape).fold(0, |at, (i, n)| at * n + i)])
        }

        fn read(&self) -> LoraFile {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("a.safetensors");
            let ending = |part: &str| match part {
                "lora_down" | "lora_up" | "lora_mid" | "a1" | "a2" | "b1" | "b2" => ".weight",
                _ => "",
            };
            let stored = self.0.iter().map(|(part, (shape, values))| {
                (format!("{MODULE}.{part}{}", ending(part)), Tensor::new(Dtype::F32, shape, values))
            });
            save(&path, &stored.collect(), &BTreeMap::new()).unwrap();
            LoraFile::open(&path).unwrap()
        }

        /// `ΔW` on a layer, beside what a formula of its elements says.
        fn is(&self, base: &Base, formula: impl Fn(&Self, &[usize]) -> f64) {
            let file = self.read().on(|_| Ok(Some(base.clone()))).unwrap();
            let delta = file.pair(MODULE).unwrap().product().weight;
            assert_eq!(delta.len(), base.weight.len());
            let mut index = vec![0; base.shape.len()];
            for found in delta {
                let expected = formula(self, &index);
                assert!(
                    (f64::from(found) - expected).abs() < 1e-5 * (1.0 + expected.abs()),
                    "{index:?}: {found} {expected}"
                );
                for axis in (0..index.len()).rev() {
                    index[axis] += 1;
                    if index[axis] < base.shape[axis] {
                        break;
                    }
                    index[axis] = 0;
                }
            }
        }
    }

    fn base(shape: &[usize]) -> Base {
        Base { weight: Philox::new(9).normal(0, shape.iter().product()), shape: shape.to_vec(), bias: None }
    }

    fn weight(base: &Base, index: &[usize]) -> f64 {
        f64::from(base.weight[index.iter().zip(&base.shape).fold(0, |at, (i, n)| at * n + i)])
    }

    #[test]
    fn tuckers_core_stands_between_the_sides() {
        let mut layer = Layer::new(&[
            ("lora_down", &[2, 3, 1, 1]),
            ("lora_mid", &[2, 2, 3, 3]),
            ("lora_up", &[4, 2, 1, 1]),
            ("alpha", &[]),
        ]);
        layer.0.insert("alpha", (vec![], vec![3.0]));
        layer.is(&base(&[4, 3, 3, 3]), |l, i| {
            let pairs = (0..2).flat_map(|m| (0..2).map(move |n| (m, n)));
            let term = |(m, n)| {
                l.at("lora_up", &[i[0], m, 0, 0])
                    * l.at("lora_mid", &[m, n, i[2], i[3]])
                    * l.at("lora_down", &[n, i[1], 0, 0])
            };
            1.5 * pairs.map(term).sum::<f64>()
        });
    }

    /// Narrow enough to stay factored, too wide for it, and with cores; no alpha is a scale of 1.
    #[test]
    fn lohas_halves_are_multiplied_number_by_number() {
        let half = |l: &Layer, n: usize, r: usize, o: usize, i: usize| -> f64 {
            (0..r).map(|k| l.at(&format!("hada_w{n}_a"), &[o, k]) * l.at(&format!("hada_w{n}_b"), &[k, i])).sum()
        };
        for (out, input, r) in [(12, 10, 2), (6, 5, 3)] {
            let layer = Layer::new(&[
                ("hada_w1_a", &[out, r]),
                ("hada_w1_b", &[r, input]),
                ("hada_w2_a", &[out, r]),
                ("hada_w2_b", &[r, input]),
            ]);
            assert_eq!(layer.read().layers.len(), usize::from(r == 2));
            layer.is(&base(&[out, input]), |l, i| half(l, 1, r, i[0], i[1]) * half(l, 2, r, i[0], i[1]));
        }
        let layer = Layer::new(&[
            ("hada_t1", &[2, 2, 3, 3]),
            ("hada_t2", &[2, 2, 3, 3]),
            ("hada_w1_a", &[2, 4]),
            ("hada_w1_b", &[2, 5]),
            ("hada_w2_a", &[2, 4]),
            ("hada_w2_b", &[2, 5]),
        ]);
        layer.is(&base(&[4, 5, 3, 3]), |l, i| {
            let half = |n: usize| -> f64 {
                let pairs = (0..2).flat_map(|p| (0..2).map(move |q| (p, q)));
                let term = |(p, q)| {
                    l.at(&format!("hada_t{n}"), &[p, q, i[2], i[3]])
                        * l.at(&format!("hada_w{n}_a"), &[p, i[0]])
                        * l.at(&format!("hada_w{n}_b"), &[q, i[1]])
                };
                pairs.map(term).sum()
            };
            half(1) * half(2)
        });
    }

    #[test]
    fn lokr_is_a_kronecker_product_and_its_alpha_counts_only_beside_a_product() {
        // Both whole: the stored alpha means nothing.
        let mut layer = Layer::new(&[("lokr_w1", &[2, 3]), ("lokr_w2", &[4, 2, 3, 3])]);
        layer.0.insert("alpha", (vec![], vec![7.0]));
        layer.is(&base(&[8, 6, 3, 3]), |l, i| {
            l.at("lokr_w1", &[i[0] / 4, i[1] / 2]) * l.at("lokr_w2", &[i[0] % 4, i[1] % 2, i[2], i[3]])
        });
        // Factored, and too wide for it.
        for (o2, i2, pairs) in [(16, 12, 1), (3, 4, 0)] {
            let mut layer = Layer::new(&[
                ("lokr_w1_a", &[2, 1]),
                ("lokr_w1_b", &[1, 3]),
                ("lokr_w2_a", &[o2, 2]),
                ("lokr_w2_b", &[2, i2]),
            ]);
            layer.0.insert("alpha", (vec![], vec![3.0]));
            assert_eq!(layer.read().layers.len(), pairs);
            layer.is(&base(&[2 * o2, 3 * i2]), |l, i| {
                let w1 = l.at("lokr_w1_a", &[i[0] / o2, 0]) * l.at("lokr_w1_b", &[0, i[1] / i2]);
                let w2: f64 =
                    (0..2).map(|k| l.at("lokr_w2_a", &[i[0] % o2, k]) * l.at("lokr_w2_b", &[k, i[1] % i2])).sum();
                1.5 * w1 * w2
            });
        }
        let layer = Layer::new(&[
            ("lokr_w1", &[2, 2]),
            ("lokr_w2_a", &[2, 3]),
            ("lokr_w2_b", &[2, 4]),
            ("lokr_t2", &[2, 2, 3, 3]),
        ]);
        layer.is(&base(&[6, 8, 3, 3]), |l, i| {
            let pairs = (0..2).flat_map(|p| (0..2).map(move |q| (p, q)));
            let term = |(p, q)| {
                l.at("lokr_t2", &[p, q, i[2], i[3]])
                    * l.at("lokr_w2_a", &[p, i[0] % 3])
                    * l.at("lokr_w2_b", &[q, i[1] % 4])
            };
            l.at("lokr_w1", &[i[0] / 3, i[1] / 4]) * pairs.map(term).sum::<f64>()
        });
    }

    #[test]
    fn a_magnitude_lies_on_either_axis() {
        for (shape, m, axis) in
            [(vec![5, 4], vec![5, 1], 0), (vec![5, 4], vec![1, 4], 1), (vec![3, 4, 2, 2], vec![1, 4, 1, 1], 1)]
        {
            let base = base(&shape);
            let down = [&[2], &shape[1..]].concat();
            let up = if shape.len() == 4 { vec![shape[0], 2, 1, 1] } else { vec![shape[0], 2] };
            let layer = Layer::new(&[("lora_down", &down), ("lora_up", &up), ("dora_scale", &m)]);
            let changed = |l: &Layer, i: &[usize]| -> f64 {
                let rest = &i[1..];
                let delta: f64 = (0..2)
                    .map(|k| {
                        let up = [&[i[0], k], &[0, 0][..shape.len() - 2]].concat();
                        l.at("lora_up", &up) * l.at("lora_down", &[&[k], rest].concat())
                    })
                    .sum();
                weight(&base, i) + delta
            };
            layer.is(&base, |l, i| {
                let mut squares = 0.0;
                for at in 0..shape.iter().product() {
                    let mut rest = at;
                    let mut index = vec![0; shape.len()];
                    for axis in (0..shape.len()).rev() {
                        (index[axis], rest) = (rest % shape[axis], rest / shape[axis]);
                    }
                    if index[axis] == i[axis] {
                        squares += changed(l, &index).powi(2);
                    }
                }
                let mut place = vec![0; shape.len()];
                place[axis] = i[axis];
                l.at("dora_scale", &place) * changed(l, i) / squares.sqrt() - weight(&base, i)
            });
        }
    }

    /// `W'` keeps every column's length, is `Rᵀ·W` for OFT and `R·W` for BOFT, and a bound of 0 is none but in kohya's files.
    #[test]
    fn rotations_turn_the_output_side() {
        let base = base(&[8, 3]);
        let changed = |layer: &Layer| -> Vec<f64> {
            let file = layer.read().on(|_| Ok(Some(base.clone()))).unwrap();
            let delta = file.pair(MODULE).unwrap().product().weight;
            base.weight.iter().zip(delta).map(|(&w, d)| f64::from(w) + f64::from(d)).collect()
        };
        let mut oft = Layer::new(&[("oft_blocks", &[2, 4, 4])]);
        let boft = Layer::new(&[("oft_blocks", &[3, 4, 2, 2])]);
        oft.0.insert("alpha", (vec![], vec![0.0]));
        for layer in [&oft, &boft] {
            let new = changed(layer);
            for column in 0..3 {
                let length = |w: &dyn Fn(usize) -> f64| (0..8).map(|row| w(row).powi(2)).sum::<f64>();
                let before = length(&|row| weight(&base, &[row, column]));
                assert!((length(&|row| new[row * 3 + column]) / before - 1.0).abs() < 1e-5);
            }
        }
        // W' = (I − Q)(I + Q)⁻¹·W of each block: (I + Q)·W' = (I − Q)·W without an inverse, as the two commute.
        let q =
            |l: &Layer, k: usize, i: usize, j: usize| l.at("oft_blocks", &[k, i, j]) - l.at("oft_blocks", &[k, j, i]);
        let new = changed(&oft);
        for (k, i, column) in (0..2).flat_map(|k| (0..4).flat_map(move |i| (0..3).map(move |c| (k, i, c)))) {
            let side = |sign: f64, w: &dyn Fn(usize) -> f64| -> f64 {
                w(4 * k + i) + sign * (0..4).map(|j| q(&oft, k, i, j) * w(4 * k + j)).sum::<f64>()
            };
            let (left, right) =
                (side(1.0, &|row| new[row * 3 + column]), side(-1.0, &|row| weight(&base, &[row, column])));
            assert!((left - right).abs() < 1e-5, "{left} {right}");
        }
        // BOFT by its definition: blocks of two, of rows 1, 2 and 4 apart, each turned by (I + Q)(I − Q)⁻¹.
        let mut rows: Vec<Vec<f64>> =
            (0..8).map(|row| (0..3).map(|column| weight(&base, &[row, column])).collect()).collect();
        for stage in 0..3 {
            let apart = 1 << stage;
            let firsts = (0..8).filter(|row| row & apart == 0);
            for (block, first) in firsts.enumerate() {
                let t = boft.at("oft_blocks", &[stage, block, 0, 1]) - boft.at("oft_blocks", &[stage, block, 1, 0]);
                let (cos, sin) = ((1.0 - t * t) / (1.0 + t * t), 2.0 * t / (1.0 + t * t));
                let (a, b) = (rows[first].clone(), rows[first + apart].clone());
                rows[first] = a.iter().zip(&b).map(|(a, b)| cos * a + sin * b).collect();
                rows[first + apart] = a.iter().zip(&b).map(|(a, b)| cos * b - sin * a).collect();
            }
        }
        let worst = rows.concat().iter().zip(changed(&boft)).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
        assert!(worst < 1e-5, "{worst}");
    }

    #[test]
    fn ia3_scales_a_side_and_glora_both_orders() {
        let base = base(&[4, 6]);
        let mut layer = Layer::new(&[("weight", &[4])]);
        layer.0.insert("on_input", (vec![], vec![0.0]));
        layer.is(&base, |l, i| l.at("weight", &[i[0]]) * weight(&base, i));
        let mut layer = Layer::new(&[("weight", &[6])]);
        layer.0.insert("on_input", (vec![], vec![1.0]));
        layer.is(&base, |l, i| l.at("weight", &[i[1]]) * weight(&base, i));

        let product = |l: &Layer, a: &str, b: &str, i: usize, j: usize| -> f64 {
            (0..2).map(|k| l.at(a, &[i, k]) * l.at(b, &[k, j])).sum()
        };
        let newer = Layer::new(&[("a1", &[6, 2]), ("a2", &[2, 6]), ("b1", &[4, 2]), ("b2", &[2, 6])]);
        let older = Layer::new(&[("a2", &[6, 2]), ("a1", &[2, 6]), ("b2", &[4, 2]), ("b1", &[2, 6])]);
        for (layer, [a, then_a, b, then_b]) in [(newer, ["a1", "a2", "b1", "b2"]), (older, ["a2", "a1", "b2", "b1"])] {
            layer.is(&base, |l, i| {
                let through = (0..6).map(|k| weight(&base, &[i[0], k]) * product(l, a, then_a, k, i[1]));
                through.sum::<f64>() + product(l, b, then_b, i[0], i[1])
            });
        }
    }

    /// As wide as long, both orders fit.
    #[test]
    fn gloras_order_is_told_in_a_square_layer_too() {
        let base = base(&[6, 6]);
        for tall in [["a1", "b1"], ["a2", "b2"]] {
            let shape = |part: &'static str| (part, if tall.contains(&part) { &[6_usize, 2][..] } else { &[2, 6] });
            let layer = Layer::new(&["a1", "a2", "b1", "b2"].map(shape));
            let [a, then_a, b, then_b] =
                if tall[0] == "a1" { ["a1", "a2", "b1", "b2"] } else { ["a2", "a1", "b2", "b1"] };
            layer.is(&base, |l, i| {
                let product = |a: &str, b: &str, i: usize, j: usize| -> f64 {
                    (0..2).map(|k| l.at(a, &[i, k]) * l.at(b, &[k, j])).sum()
                };
                let through = (0..6).map(|k| weight(&base, &[i[0], k]) * product(a, then_a, k, i[1]));
                through.sum::<f64>() + product(b, then_b, i[0], i[1])
            });
        }
    }

    /// PEFT's BOFT: each factor is P·D·Pᵀ, with P as its rule lists it.
    #[test]
    fn butterflies_are_pefts() {
        let (n, b, stages) = (16, 4, 3);
        let layer = Layer::new(&[("boft_R", &[stages, n / b, b, b])]);
        let base = base(&[3, n]);
        let lists: [[usize; 16]; 3] = [
            [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15],
            [0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15],
            [0, 1, 4, 5, 8, 9, 12, 13, 2, 3, 6, 7, 10, 11, 14, 15],
        ];
        let mut rows: Vec<Vec<f64>> = (0..3).map(|o| (0..n).map(|i| weight(&base, &[o, i])).collect()).collect();
        for (stage, list) in lists.iter().enumerate() {
            for row in &mut rows {
                // Pᵀ·x, where (P·x)ᵢ is x at the list's i-th place.
                let mut turned = vec![0.0; n];
                list.iter().enumerate().for_each(|(i, &from)| turned[from] = row[i]);
                for (k, block) in turned.chunks_exact_mut(b).enumerate() {
                    let q = |i, j| {
                        let r = |i, j| layer.at("boft_R", &[stage, k, i, j]);
                        0.5 * (r(i, j) - r(j, i))
                    };
                    let one = faer::Mat::<f64>::identity(b, b);
                    let q = faer::Mat::from_fn(b, b, q);
                    let x = faer::Mat::from_fn(b, 1, |i, _| block[i]);
                    let y = (&one - &q) * faer::linalg::solvers::Solve::solve(&(&one + &q).partial_piv_lu(), x);
                    (0..b).for_each(|i| block[i] = y[(i, 0)]);
                }
                *row = list.iter().map(|&from| turned[from]).collect();
            }
        }
        layer.is(&base, |_, i| rows[i[0]][i[1]] - weight(&base, i));
    }

    #[test]
    fn what_no_kind_has_is_named_and_counted() {
        let mut layer =
            Layer::new(&[("lora_down", &[1, 2]), ("lora_up", &[2, 1]), ("lokr_t2", &[1]), ("rescale", &[2])]);
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.safetensors");
        let write = |layer: &Layer| {
            let stored = layer.0.iter().map(|(part, (shape, values))| {
                let ending = if part.starts_with("lora") { ".weight" } else { "" };
                (format!("{MODULE}.{part}{ending}"), Tensor::new(Dtype::F32, shape, values))
            });
            save(&path, &stored.collect(), &BTreeMap::new()).unwrap();
            LoraFile::open(&path)
        };
        let error = write(&layer).unwrap_err();
        assert!(error.what.contains("2 tensors") && error.what.contains("lokr_t2"), "{error}");
        layer.0.retain(|part, _| part.starts_with("lora"));
        assert!(write(&layer).is_ok());
        layer.0.insert("dora_scale", (vec![2], vec![1.0, 1.0]));
        assert!(write(&layer).unwrap_err().what.contains("dora_scale has the shape [2]"));
    }
}
