//! The corpus of this crate, for backends whose authors have nothing else.
//!
//! The files are made by [`generate`] from seeds, by a solver in f64 that shares no code with the library and
//! updates all later columns at once where the library works block by block. Each seed is the first from
//! which no decision is near: nothing that rounding in f32 could change.
//! `cargo test -p sparsegpt-conformance --lib -- --ignored write_the_corpus` writes them anew; a test holds them to
//! their generator.

#[cfg(test)]
mod generate;

use sparsegpt::backend::Backend;

use super::case::Solved;
use crate::check::{Cases, ensure};
use crate::tolerance::EXACT;

macro_rules! files {
    ($($name:literal),* $(,)?) => {
        /// Name and contents of each file.
        const FILES: &[(&str, &[u8])] =
            &[$(($name, include_bytes!(concat!("corpus/", $name, ".safetensors")))),*];
    };
}
files![
    "unstructured_50",
    "unstructured_50_damping_10pct",
    "unstructured_70_one_block",
    "unstructured_50_dead_columns",
    "unstructured_50_ragged_columns",
    "unstructured_50_one_row",
    "unstructured_50_one_column_blocks",
    "unstructured_50_fewer_tokens_than_columns",
    "nm_2_4",
    "nm_3_7",
    "nm_1_2_one_row",
    "joint_50_int4",
    "joint_2_4_int3_symmetric",
    "quantize_int4",
    "quantize_int3_groups_ragged",
    "quantize_int4_per_tensor",
];

pub(super) fn add_cases<B: Backend>(cases: &mut Cases<B>) {
    for (name, bytes) in FILES {
        cases.add(format!("golden/corpus/{name}"), move |subject| {
            let case = Solved::read(bytes)?;
            ensure!(
                case.request.name == *name,
                "the file {name} holds {}",
                case.request.name
            );
            let ours = case.solve(&subject.solver, None)?;
            case.compare(&ours, &case.all_rows(), 0, &EXACT)
        });
    }
}
