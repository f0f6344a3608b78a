//! The outputs of the published reference implementation, in `golden/layers` of the shared folder.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Deserialize;
use sparsegpt::backend::Backend;
use sparsegpt::mask::{BlockMask, BlockScores, MaskBlock, MaskPolicy};
use sparsegpt::ndarray::Array2;
use sparsegpt::{Method, Solver};

use super::case::{Request, Solved};
use crate::check::{Cases, Failure, Verdict, ensure};
use crate::tolerance::{EXACT, OTHER_COUNT};

/// The shared folder; by default it lies beside the workspace.
const SHARED: &str = "SPARSEGPT_SHARED";

fn folder() -> PathBuf {
    let shared = std::env::var_os(SHARED).map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared"),
        PathBuf::from,
    );
    shared.join("golden").join("layers")
}

#[derive(Deserialize)]
struct Entry {
    name: String,
}

/// The names of the cases; `None` where the folder is absent.
fn names(folder: &Path) -> Option<Verdict<Vec<String>>> {
    let list = std::fs::read(folder.join("cases.json")).ok()?;
    let entries = serde_json::from_slice::<Vec<Entry>>(&list).map_err(Failure::from);
    Some(entries.map(|entries| entries.into_iter().map(|entry| entry.name).collect()))
}

pub(super) fn add_cases<B: Backend>(cases: &mut Cases<B>) {
    let folder = folder();
    match names(&folder) {
        None => cases.add("golden/reference", |_| {
            Err(Failure::Skipped(format!(
                "no golden/layers/cases.json beside the workspace; {SHARED} may name the shared folder"
            )))
        }),
        Some(Err(_)) => cases.add("golden/reference", move |_| {
            names(&folder).unwrap_or(Ok(Vec::new())).map(|_| ())
        }),
        Some(Ok(names)) => {
            let paths: Vec<PathBuf> = names
                .iter()
                .map(|name| folder.join(format!("{name}.safetensors")))
                .collect();
            cases.add("golden/reference/quality_leaves_less_than_half", move |subject| {
                quality(&subject.solver, &paths)
            });
            for name in names {
                let path = folder.join(format!("{name}.safetensors"));
                let same_path = path.clone();
                cases.add(format!("golden/reference/{name}/exact_count"), move |subject| {
                    exact_count(&subject.solver, &read(&path)?)
                });
                cases.add(format!("golden/reference/{name}/count_of_the_reference"), move |subject| {
                    count_of_the_reference(&subject.solver, &read(&same_path)?)
                });
            }
        }
    }
}

fn read(path: &Path) -> Verdict<Solved> {
    let bytes = std::fs::read(path)
        .map_err(|error| Failure::Wrong(format!("cannot read {}: {error}", path.display())))?;
    Solved::read(&bytes)
}

/// As the library counts: one weight fewer in each block than the reference, which prunes
/// int(numel·p) + 1 and ties, and one even where it only quantizes.
fn exact_count<B: Backend>(solver: &Solver<B>, case: &Solved) -> Verdict {
    let request = &case.request;
    let ours = case.solve(solver, None)?;
    let expected = match request.n {
        0 => (request.sparsity * case.weight.len() as f64).floor() as u64,
        n => (case.weight.len() / request.m * n) as u64,
    };
    ensure!(
        ours.report.pruned == expected,
        "{}: {} weights pruned, expected exactly {expected}",
        request.name,
        ours.report.pruned
    );
    let blocks = case.weight.ncols().div_ceil(request.block_size);
    match () {
        () if request.n > 0 => case.compare(&ours, &case.all_rows(), 0, &EXACT),
        // An extra zero moves the threshold and with it one other weight at most.
        () if request.sparsity > 0.0 => {
            case.compare(&ours, &case.all_rows(), 2 * blocks, &OTHER_COUNT)
        }
        // Without pruning, rows do not know of each other: an extra zero changes how everything behind it in
        // its own row is rounded, and nothing else. All other rows must be the same.
        () => {
            let mask = case
                .solve(solver, Some(counting_as_the_reference(request)))?
                .mask;
            let mut rows = case.all_rows();
            rows.retain(|&row| mask.row(row).iter().all(|&kept| kept));
            ensure!(
                rows.len() + blocks >= mask.nrows(),
                "{}: the reference's extra zeros are in {} rows, expected at most {blocks}",
                request.name,
                mask.nrows() - rows.len()
            );
            case.compare(&ours, &rows, 0, &EXACT)
        }
    }
}

/// On the pruning cases, whose inputs are strongly correlated, [`Method::Quality`] leaves at most 0.45 times the
/// reference's error in the geometric mean and 0.8 in any; where the reference rounds too, at most 0.95 in any.
fn quality<B: Backend>(solver: &Solver<B>, paths: &[PathBuf]) -> Verdict {
    let mut logs = Vec::new();
    for path in paths {
        let case = read(path)?;
        if !case.request.prunes() {
            continue;
        }
        let ratio = case.error_ratio(solver, Method::Quality)?;
        let (limit, rounds) = match case.request.quantizes() {
            true => (0.95, true),
            false => (0.8, false),
        };
        ensure!(
            ratio <= limit,
            "{}: {ratio:.3} times the reference's error, allowed is {limit}",
            case.request.name
        );
        if !rounds {
            logs.push(ratio.ln());
        }
    }
    let mean = (logs.iter().sum::<f64>() / logs.len() as f64).exp();
    ensure!(
        mean <= 0.45,
        "{mean:.3} times the reference's error in the geometric mean of {} cases, allowed is 0.45",
        logs.len()
    );
    Ok(())
}

fn count_of_the_reference<B: Backend>(solver: &Solver<B>, case: &Solved) -> Verdict {
    let request = &case.request;
    let policy = (request.n == 0).then(|| counting_as_the_reference(request));
    case.compare(&case.solve(solver, policy)?, &case.all_rows(), 0, &EXACT)
}

fn counting_as_the_reference(request: &Request) -> Arc<dyn MaskPolicy> {
    Arc::new(CountsAsTheReference(request.sparsity))
}

/// Prunes every weight of a block whose saliency is at most the one at index int(numel·p) of the sorted
/// saliencies: one weight more than asked for, and ties.
#[derive(Debug)]
struct CountsAsTheReference(f64);

impl MaskPolicy for CountsAsTheReference {
    fn describe(&self) -> String {
        format!("{} as the reference counts", self.0)
    }

    fn choose(&self, _block: &MaskBlock<'_>) -> sparsegpt::Result<BlockMask> {
        Ok(BlockMask::ByScores)
    }

    fn choose_by_scores(
        &self,
        _block: &MaskBlock<'_>,
        scores: &BlockScores<'_>,
    ) -> sparsegpt::Result<Array2<bool>> {
        let saliency = Array2::from_shape_fn(scores.weights.dim(), |(row, col)| {
            (scores.weights[[row, col]] / scores.scales[col]).powi(2)
        });
        let mut sorted: Vec<f32> = saliency.iter().copied().collect();
        sorted.sort_by(f32::total_cmp);
        let index = (sorted.len() as f64 * self.0) as usize;
        let threshold = sorted.get(index).copied().unwrap_or(f32::INFINITY);
        Ok(saliency.mapv(|saliency| saliency <= threshold))
    }
}
