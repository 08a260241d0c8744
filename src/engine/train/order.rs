//! Which images a step looks at: a function of the seed and the step, so that a resumed run looks at the same.
//!
//! Images that can share a batch, of one concept and one size, are a *group*. A step first draws a concept, then one of
//! its groups, each as often as it has images; a group smaller than the batch fills it by repeats. So every image of a
//! concept is shown equally often, whatever the shapes of the others.

use crate::engine::random::Philox;

// Independent streams of random numbers, beside those of the batches.
const ORDER: u32 = 3;
const CONCEPTS: u32 = 21;
const GROUPS: u32 = 22;

/// How often each concept's turn comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Balance {
    /// As often as it has images, repeats counted.
    Pictures,
    /// As often as any other.
    Equal,
}

#[derive(Clone, Debug)]
pub struct Order {
    /// Images of each group of each concept: rows of the group, as often as they repeat.
    pub groups: Vec<Vec<Vec<usize>>>,
    pub balance: Balance,
}

/// What a step looks at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Drawn {
    pub concept: usize,
    pub group: usize,
    /// Rows of the group.
    pub rows: Vec<usize>,
}

impl Order {
    /// The `batch` images of a step.
    pub fn batch(&self, random: &Philox, batch: usize, step: usize) -> Drawn {
        let sizes = |groups: &Vec<Vec<usize>>| groups.iter().map(Vec::len).collect::<Vec<_>>();
        let shares: Vec<usize> = match self.balance {
            Balance::Pictures => self.groups.iter().map(|groups| sizes(groups).iter().sum()).collect(),
            Balance::Equal => vec![1; self.groups.len()],
        };
        let (concept, turn) = nth(&random.stream(CONCEPTS), &shares, step);
        let (group, turn) = nth(&random.stream(GROUPS), &sizes(&self.groups[concept]), turn);
        let images = &self.groups[concept][group];
        let rows = (turn * batch..(turn + 1) * batch).map(|at| {
            let epoch = u32::try_from(at / images.len()).unwrap_or(u32::MAX);
            images[random.stream(ORDER).permutation(epoch, images.len())[at % images.len()]]
        });
        Drawn { concept, group, rows: rows.collect() }
    }
}

/// Whose turn it is at a place of an endless sequence, and how many turns they had before. In each round of it everyone
/// has as many turns as their share, newly shuffled.
fn nth(random: &Philox, shares: &[usize], at: usize) -> (usize, usize) {
    if shares.len() == 1 {
        return (0, at);
    }
    let owners: Vec<usize> = (0..shares.len()).flat_map(|owner| std::iter::repeat_n(owner, shares[owner])).collect();
    let (round, place) = (at / owners.len(), at % owners.len());
    let order = random.permutation(u32::try_from(round).unwrap_or(u32::MAX), owners.len());
    let owner = owners[order[place]];
    let before = order[..place].iter().filter(|&&turn| owners[turn] == owner).count();
    (owner, round * shares[owner] + before)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    fn order(balance: Balance) -> Order {
        // The second concept has one picture in a bucket of its own, and one that repeats.
        Order { groups: vec![vec![(0..6).collect()], vec![vec![0, 1, 1, 2], vec![0]]], balance }
    }

    #[test]
    fn every_image_is_shown_equally_often_and_a_lonely_one_fills_its_batch() {
        let order = order(Balance::Pictures);
        let random = Philox::new(7);
        let mut shown: BTreeMap<(usize, usize, usize), usize> = BTreeMap::new();
        // Eleven images: in as many steps of four each is shown four times, in twelve rounds 48 times.
        for step in 0..11 * 12 {
            let Drawn { concept, group, rows } = order.batch(&random, 4, step);
            assert_eq!(rows.len(), 4);
            assert!(rows.iter().all(|row| order.groups[concept][group].contains(row)), "a batch mixes groups");
            for row in rows {
                *shown.entry((concept, group, row)).or_insert(0) += 1;
            }
        }
        let lonely = shown[&(1, 1, 0)];
        assert_eq!((lonely, shown[&(1, 0, 1)]), (48, 96), "what repeats twice is shown twice as often");
        assert!((0..6).all(|row| shown[&(0, 0, row)] == 48), "{shown:?}");
    }

    #[test]
    fn equal_shares_take_turns() {
        let order = order(Balance::Equal);
        let random = Philox::new(7);
        for round in 0..20 {
            let [a, b] = [0, 1].map(|place| order.batch(&random, 2, 2 * round + place).concept);
            assert_eq!(a + b, 1, "both in every round of two");
        }
    }

    #[test]
    fn an_order_is_a_function_of_seed_and_step() {
        let order = order(Balance::Pictures);
        let of = |seed| (0..40).map(|step| order.batch(&Philox::new(seed), 3, step)).collect::<Vec<_>>();
        assert_eq!(of(1), of(1));
        assert_ne!(of(1), of(2));
    }

    /// What a run of one concept and one size has always looked at.
    #[test]
    fn one_group_is_one_endless_sequence_of_shuffled_epochs() {
        let order = Order { groups: vec![vec![vec![5, 6, 7, 8, 9]]], balance: Balance::Pictures };
        let random = Philox::new(3);
        let rows: Vec<usize> = (0..5).flat_map(|step| order.batch(&random, 2, step).rows).collect();
        let epoch = |n| random.stream(3).permutation(n, 5).into_iter().map(|i| i + 5);
        assert_eq!(rows, epoch(0).chain(epoch(1)).collect::<Vec<_>>());
    }
}
