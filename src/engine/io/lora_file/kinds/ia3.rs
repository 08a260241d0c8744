//! (IA)³: every row of the weight, or every column, is scaled.
//!
//! LyCORIS stores what is added to 1 and says the side in `on_input`; PEFT stores the factor, knows its feed-forward
//! layers by the shape or the configuration, and scales the bias with the output.

use crate::engine::io::lora_file::kinds::Read;
use crate::engine::io::lora_file::parts::{Parts, Wrong};
use crate::engine::io::lora_file::relative::{Axis, Relative};

pub fn read(parts: &Parts<'_>) -> Result<Read, Wrong> {
    if let Some(l) = parts.maybe("ia3_l")? {
        let axis = match l.shape[..] {
            [n, 1] if n > 1 => Axis::Output,
            [1, n] if n > 1 => Axis::Input,
            _ if parts.numbers.on_input => Axis::Input,
            _ => Axis::Output,
        };
        let more = l.values.iter().map(|&l| l - 1.0).collect();
        return Ok(Read::Relative(Relative::Scaling { more, axis, with_bias: axis == Axis::Output }));
    }
    let more = parts.array("weight")?.values;
    let on_input = parts.number("on_input")?.is_some_and(|on| on != 0.0);
    let axis = if on_input { Axis::Input } else { Axis::Output };
    Ok(Read::Relative(Relative::Scaling { more, axis, with_bias: false }))
}
