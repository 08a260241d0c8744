//! Trim, elect, disjoint mean: how TIES settles what adapters say about one number (Yadav et al. 2023, arXiv 2306.01708,
//! with PEFT's conventions where implementations differ).

use crate::engine::field::{Field, Kind, Settings};
use crate::engine::merge::note::{Note, shares};

pub const DENSITY: Field = Field {
    name: "density",
    title: "Density",
    help: "Share of each adapter's numbers that is listened to, the largest first; the rest counts as nothing",
    unit: "",
    default: "0.2",
    kind: Kind::Number { min: 0.001, max: 1.0 },
};

pub const SIGN: Field = Field {
    name: "sign",
    title: "Vote",
    help: "How the direction of each number is chosen. total: the larger sum wins. frequency: the larger number of adapters wins",
    unit: "",
    default: "total",
    kind: Kind::Choice(&["total", "frequency"]),
};

pub const LAMBDA: Field = Field {
    name: "lambda",
    title: "Strength of the result",
    help: "The result is multiplied by this; averaging weakens what adapters have in common less than what they do not",
    unit: "",
    default: "1",
    kind: Kind::Number { min: 0.0, max: 4.0 },
};

/// The rules of one election.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    density: f64,
    by_frequency: bool,
    lambda: f64,
}

/// What was elected, and how many of the votes lost.
#[derive(Clone, Debug)]
pub struct Elected {
    pub values: Vec<f64>,
    pub votes: usize,
    pub lost: usize,
}

impl Rules {
    pub fn of(settings: &Settings) -> Self {
        Self {
            density: settings.number("density"),
            by_frequency: settings.text("sign") == "frequency",
            lambda: settings.number("lambda"),
        }
    }

    /// `λ · Σₜ wₜ·xₜ / #{t}` over the adapters whose trimmed `sgn(wₜ)·xₜ` agrees with the elected sign. A vote that
    /// hangs elects +; where nobody agrees, the result is 0. The vote hears `x` without the size of `w`, as in PEFT, so
    /// that a fader changes how loud an adapter is and not whether it is heard.
    pub fn elect(self, mut adapters: Vec<(f64, Vec<f64>)>) -> Elected {
        for (w, x) in &mut adapters {
            trim(x, self.density);
            let sign = w.signum();
            for x in x {
                *x *= sign;
            }
            *w = w.abs();
        }
        let (mut votes, mut lost) = (0, 0);
        let entries = adapters.first().map_or(0, |(_, x)| x.len());
        let values = (0..entries)
            .map(|i| {
                let vote = |x: f64| if self.by_frequency { sign(x) } else { x };
                let gamma = if adapters.iter().map(|(_, x)| vote(x[i])).sum::<f64>() >= 0.0 { 1.0 } else { -1.0 };
                let (mut sum, mut agreeing) = (0.0, 0);
                for (w, x) in adapters.iter().map(|(w, x)| (w, x[i])).filter(|(_, x)| *x != 0.0) {
                    votes += 1;
                    if sign(x) * gamma > 0.0 {
                        sum += w * x;
                        agreeing += 1;
                    } else {
                        lost += 1;
                    }
                }
                self.lambda * sum / f64::from(agreeing.max(1))
            })
            .collect();
        Elected { values, votes, lost }
    }
}

/// −1, 0 or 1; `signum` gives 1 for 0.
fn sign(x: f64) -> f64 {
    if x == 0.0 { 0.0 } else { x.signum() }
}

/// Keeps the `⌊density·d⌋` largest magnitudes, the first of equal ones, and sets the others to 0.
fn trim(x: &mut [f64], density: f64) {
    let kept = (density * x.len() as f64) as usize;
    if kept >= x.len() {
        return;
    }
    let mut order: Vec<usize> = (0..x.len()).collect();
    order.select_nth_unstable_by(kept, |&a, &b| x[b].abs().total_cmp(&x[a].abs()).then(a.cmp(&b)));
    for &i in &order[kept..] {
        x[i] = 0.0;
    }
}

/// How contested the layers were, given what was elected in each: the votes that lost, of all votes.
pub fn conflicts(layers: impl IntoIterator<Item = (String, [usize; 2])>) -> Vec<Note> {
    let counts = layers.into_iter().map(|(layer, counts)| (layer, counts.map(|count| count as f64)));
    shares("conflict", "Numbers outvoted by other adapters", counts)
}

#[cfg(test)]
mod tests {
    use super::*;

    const RULES: Rules = Rules { density: 1.0, by_frequency: false, lambda: 1.0 };

    #[test]
    fn exactly_the_largest_stay() {
        let trimmed = |density| {
            let mut x = vec![0.1, -3.0, 2.0, -2.0, 0.5];
            trim(&mut x, density);
            x
        };
        assert_eq!(trimmed(0.2), [0.0, -3.0, 0.0, 0.0, 0.0]);
        assert_eq!(trimmed(0.5), [0.0, -3.0, 2.0, 0.0, 0.0], "⌊2.5⌋, and the first of equal ones");
        assert_eq!(trimmed(0.1), [0.0; 5], "⌊0.5⌋ is none");
        assert_eq!(trimmed(1.0), [0.1, -3.0, 2.0, -2.0, 0.5]);
    }

    #[test]
    fn votes_choose_the_sign_and_the_mean_is_of_the_agreeing() {
        let x = |by_frequency, values: [f64; 3]| {
            let adapters = values.iter().map(|&x| (1.0, vec![x])).collect();
            Rules { by_frequency, ..RULES }.elect(adapters).values[0]
        };
        assert_eq!((x(false, [1.0, 2.0, -9.0]), x(true, [1.0, 2.0, -9.0])), (-9.0, 1.5));
        assert_eq!((x(false, [1.0, 3.0, -2.0]), x(false, [0.0, 3.0, -2.0])), (2.0, 3.0));
        // A tie elects +.
        assert_eq!((x(false, [2.0, -2.0, 0.0]), x(true, [1.0, -5.0, 0.0])), (2.0, 1.0));
        assert!(x(true, [0.0; 3]).abs() < 1e-15);
    }

    #[test]
    fn faders_scale_after_the_vote_and_minus_turns_an_adapter() {
        let elected = |w: [f64; 2], x: [f64; 2]| RULES.elect(vec![(w[0], vec![x[0]]), (w[1], vec![x[1]])]).values[0];
        assert!((elected([0.1, 3.0], [2.0, -1.0]) - 0.2).abs() < 1e-15, "heard without its fader");
        assert!((elected([-1.0, 1.0], [2.0, 3.0]) - elected([1.0, 1.0], [-2.0, 3.0])).abs() < 1e-15);
        let Elected { votes, lost, .. } = RULES.elect(vec![(1.0, vec![1.0, 1.0]), (1.0, vec![2.0, -2.0])]);
        assert_eq!((votes, lost), (4, 1));
    }
}
