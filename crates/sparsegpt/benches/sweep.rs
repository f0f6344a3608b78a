//! The sweep alone, for counting its instructions: `scripts/count-instructions.sh` runs it under callgrind.
//!
//! `sweep ROWS WIDTH RULE REPETITIONS`, RULE one of `keep`, `fixed`, `2:4`, `2:4+4bit`. One thread.

#![allow(clippy::unwrap_used, clippy::panic)]

use sparsegpt::backend::{Backend, Cpu, GridKind, GridRef, PruneRef, UpdateRows};
use sparsegpt::ndarray::Array2;

fn main() {
    let args: Vec<String> = std::env::args()
        .skip(1)
        .filter(|arg| arg != "--bench")
        .collect();
    let [rows, width, rule, repetitions] = args.as_slice() else {
        println!("run by scripts/count-instructions.sh");
        return;
    };
    let (rows, width): (usize, usize) = (rows.parse().unwrap(), width.parse().unwrap());
    let cpu = Cpu::new(1).unwrap();
    let weights = Array2::from_shape_fn((rows, width), |(i, j)| {
        ((i * 31 + j * 17) % 29) as f32 / 29.0 - 0.5
    });
    let factor = Array2::from_shape_fn((width, width), |(i, j)| match i.cmp(&j) {
        std::cmp::Ordering::Less => ((i * 7 + j * 3) % 11) as f32 * 1e-3,
        std::cmp::Ordering::Equal => 1.0 + i as f32 * 1e-3,
        std::cmp::Ordering::Greater => 0.0,
    });
    let mask = Array2::from_shape_fn((rows, width), |(i, j)| (i + j) % 2 == 0);
    let up = |matrix: Array2<f32>| cpu.upload(matrix.view()).unwrap();
    let (mut weights, factor) = (up(weights), up(factor));
    let (mut errors, mut losses) = (cpu.zeros(rows, width).unwrap(), cpu.zeros(rows, 1).unwrap());
    let mask = cpu.upload_mask(mask.view()).unwrap();
    let (scale, zero) = (
        up(Array2::from_elem((rows, 1), 0.1)),
        up(Array2::from_elem((rows, 1), 8.0)),
    );
    let groups = vec![0; width];
    for _ in 0..repetitions.parse().unwrap() {
        let prune = match rule.split('+').next() {
            Some("keep") => PruneRef::Keep,
            Some("fixed") => PruneRef::Fixed {
                mask: &mask,
                offset: 0,
            },
            Some("2:4") => PruneRef::NofM { zeros: 2, group: 4 },
            _ => panic!("unknown rule {rule}"),
        };
        let grid = rule
            .ends_with("+4bit")
            .then(|| GridRef::new(GridKind::Affine { max_code: 15 }, &scale, &zero, &groups));
        let sweep = UpdateRows::new(
            &mut weights,
            &factor,
            (&mut errors, 0),
            &mut losses,
            0..width,
        );
        cpu.update_rows(sweep.pruning(prune).rounding(grid))
            .unwrap();
    }
}
