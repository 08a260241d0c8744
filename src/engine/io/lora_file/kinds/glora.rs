//! GLoRA: `ΔW = alpha/r · (W·a1·a2 + b1·b2)`, and `W·a2·a1 + b2·b1` in older files, which the shapes tell.

use crate::engine::io::lora_file::kinds::{Read, loha};
use crate::engine::io::lora_file::parts::{Parts, Wrong};
use crate::engine::io::lora_file::relative::Relative;

pub fn read(parts: &Parts<'_>) -> Result<Read, Wrong> {
    let [a1, a2, b1, b2] = ["a1", "a2", "b1", "b2"].map(|name| parts.array(name));
    let (a1, a2, b1, b2) = (a1?, a2?, b1?, b2?);
    let newer = [a2.rows(), b1.columns(), b2.rows()].iter().all(|&rank| rank == a1.columns());
    let older = [a2.columns(), b1.rows(), b2.columns()].iter().all(|&rank| rank == a1.rows());
    // A square layer's factors of the newer order look like older ones of its whole width; ComfyUI tells likewise.
    let newer = newer && !(older && a2.rows() == a2.columns());
    if !newer && !older {
        return Err("its factors do not belong together".into());
    }
    let (a, b, rank) = if newer {
        (loha::product(&a1, &a2)?, loha::product(&b1, &b2)?, b1.columns())
    } else {
        (loha::product(&a2, &a1)?, loha::product(&b2, &b1)?, b2.columns())
    };
    if a.rows() != a.columns() {
        return Err(format!("its factors make a matrix of {} × {} on the read side", a.rows(), a.columns()));
    }
    let scale = f64::from(parts.alpha(rank)?) / rank as f64;
    Ok(Read::Relative(Relative::General { a, b, scale }))
}
