//! What a model is made of, and how many concepts fit into it without meeting.

#![allow(clippy::print_stdout, reason = "an example prints what it proves")]

use triptych::engine::adapter::basis::{self, Basis, BasisKind};
use triptych::engine::inspect::{Report, inspect};
use triptych::engine::{Error, Result};

fn main() -> Result<()> {
    // `starter` comes with the program; a folder in diffusers layout works the same way.
    let Report::Model { name, native_size: [width, height], caption, targets, block, capacity, .. } =
        inspect("starter", None)?
    else {
        return Err(Error::new("The starter is not a model", "Install the program again"));
    };
    println!("{name} makes pictures of {width}×{height} from captions such as “{caption}”.");
    println!("Layers an adapter can change, by group:");
    for (group, layers) in &targets {
        println!("  {group:<16} {layers}");
    }

    // Each concept listens to `block` columns of one shared orthonormal basis: its slot.
    let basis = Basis { kind: BasisKind::Slots, version: basis::VERSION, seed: 0, block };
    let narrowest = capacity * block;
    let mut rows: Vec<Vec<f32>> = Vec::new();
    for slot in 0..capacity {
        rows.extend(basis.rows(narrowest, slot, block)?.chunks(narrowest).map(<[f32]>::to_vec));
    }
    let mut worst = 0.0_f64;
    for (i, a) in rows.iter().enumerate() {
        for (j, b) in rows.iter().enumerate() {
            let dot: f64 = a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum();
            worst = worst.max((dot - f64::from(u8::from(i == j))).abs());
        }
    }
    assert!(worst < 1e-6, "the slots meet: {worst:.1e}");
    let full = basis.rows(narrowest, capacity, block).is_err();
    assert!(full, "one more concept would still fit");

    println!(
        "Proved: {capacity} concepts of {block} columns fill the {narrowest} inputs of the narrowest layer exactly; \
         any two columns are orthonormal to {worst:.0e}."
    );
    Ok(())
}
