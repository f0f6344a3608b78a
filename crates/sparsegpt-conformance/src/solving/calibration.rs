//! Hessians from activations.

use sparsegpt::backend::Backend;
use sparsegpt::half::{bf16, f16};
use sparsegpt::ndarray::{Array2, s};
use sparsegpt::{Activations, Batch, Hessian, LayerSettings, Pattern};

use crate::check::{Cases, Subject, Verdict, close, ensure, same_bits};
use crate::random::Random;
use crate::tolerance::HESSIAN;

const COLS: usize = 37;

pub(super) fn add_cases<B: Backend>(cases: &mut Cases<B>) {
    cases.add(
        "solver/hessian/is_a_running_mean_over_sequences",
        running_mean,
    );
    cases.add("solver/hessian/two_halves_merge_to_the_whole", merge);
    cases.add("solver/hessian/token_mask_leaves_padding_out", token_mask);
    cases.add("solver/hessian/half_precision", half_precision);
    cases.add("solver/hessian/outlives_a_layer", outlives_a_layer);
    cases.add("solver/hessian/from_activations_or_matrix", from_matrix);
}

/// 2/sequences · Σ XᵀX, and Σ |X|ᵀ|X| likewise.
fn truth(parts: &[Activations<'_>], sequences: u64) -> [Array2<f64>; 2] {
    let mut sums = [Array2::zeros((COLS, COLS)), Array2::zeros((COLS, COLS))];
    for part in parts {
        let x = Array2::from_shape_fn((part.tokens(), COLS), |(token, col)| {
            f64::from(part.get(token, col))
        });
        sums[0] += &x.t().dot(&x);
        let x = x.mapv(f64::abs);
        sums[1] += &x.t().dot(&x);
    }
    sums.map(|sum| sum * (2.0 / sequences as f64))
}

fn check<B: Backend>(
    what: &str,
    hessian: &Hessian<B>,
    parts: &[Activations<'_>],
    sequences: u64,
) -> Verdict {
    let tokens: usize = parts.iter().map(|part| part.tokens()).sum();
    ensure!(
        (hessian.tokens(), hessian.sequences()) == (tokens as u64, sequences),
        "{what}: {} tokens and {} sequences counted, expected {tokens} and {sequences}",
        hessian.tokens(),
        hessian.sequences()
    );
    let found = hessian.to_array()?;
    let [expected, sizes] = truth(parts, sequences);
    for i in 0..COLS {
        for j in 0..=i {
            let at = [i, j];
            let found = f64::from(found[at]);
            close(
                format_args!("{what}: H{at:?}"),
                found,
                expected[at],
                sizes[at],
                &HESSIAN,
            )?;
        }
    }
    Ok(())
}

fn sequences(lengths: &[usize]) -> Vec<Array2<f32>> {
    let mut random = Random::new(600);
    lengths
        .iter()
        .map(|&tokens| random.activations(tokens, COLS))
        .collect()
}

fn running_mean<B: Backend>(subject: &Subject<B>) -> Verdict {
    let parts = sequences(&[20, 1, 64, 33, 0, 7]);
    let mut hessian = subject.solver.hessian(COLS)?;
    for part in &parts {
        hessian.update(part.view())?;
    }
    let views: Vec<Activations<'_>> = parts.iter().map(|part| part.view().into()).collect();
    check("six sequences", &hessian, &views, 6)?;
    let mut hessian = subject.solver.hessian(COLS)?;
    hessian.update(Batch::new(parts[0].view()).sequences(4))?;
    hessian.update(Batch::new(parts[2].view()).sequences(3))?;
    check("batches of sequences", &hessian, &[views[0], views[2]], 7)
}

fn merge<B: Backend>(subject: &Subject<B>) -> Verdict {
    let parts = sequences(&[20, 30, 64, 33, 10]);
    let views: Vec<Activations<'_>> = parts.iter().map(|part| part.view().into()).collect();
    let of = |parts: &[Array2<f32>]| -> Verdict<Hessian<B>> {
        let mut hessian = subject.solver.hessian(COLS)?;
        for part in parts {
            hessian.update(part.view())?;
        }
        Ok(hessian)
    };
    let mut first = of(&parts[..2])?;
    first.merge(&of(&parts[2..])?)?;
    check("two parts merged", &first, &views, 5)?;
    first.merge(&of(&[])?)?;
    check("merged with an empty one", &first, &views, 5)?;
    let mut empty = of(&[])?;
    empty.merge(&of(&parts)?)?;
    check("an empty one merged with all", &empty, &views, 5)
}

fn token_mask<B: Backend>(subject: &Subject<B>) -> Verdict {
    let mut padded = sequences(&[50]).remove(0);
    let counts: Vec<bool> = (0..50)
        .map(|token| token % 7 != 3 && token < 44 && token > 0)
        .collect();
    // Padding may be anything.
    for (mut row, counts) in padded.rows_mut().into_iter().zip(&counts) {
        if !counts {
            row.fill(f32::NAN);
        }
    }
    let kept: Vec<usize> = (0..50).filter(|&token| counts[token]).collect();
    let real = padded.select(sparsegpt::ndarray::Axis(0), &kept);
    let mut hessian = subject.solver.hessian(COLS)?;
    hessian.update(Batch::new(padded.view()).token_mask(&counts))?;
    check("masked tokens", &hessian, &[real.view().into()], 1)?;
    hessian.update(Batch::new(padded.view()).token_mask(&[false; 50]))?;
    check(
        "and a sequence of padding alone",
        &hessian,
        &[real.view().into()],
        2,
    )
}

fn half_precision<B: Backend>(subject: &Subject<B>) -> Verdict {
    let x = sequences(&[70]).remove(0);
    let mut hessian = subject.solver.hessian(COLS)?;
    let (brain, half) = (x.mapv(bf16::from_f32), x.mapv(f16::from_f32));
    hessian.update(brain.view())?;
    hessian.update(half.slice(s![..;2, ..]))?;
    check(
        "bf16 and f16",
        &hessian,
        &[brain.view().into(), half.slice(s![..;2, ..]).into()],
        2,
    )
}

/// The solver uses the other triangle as scratch; the Hessian must keep its meaning.
fn outlives_a_layer<B: Backend>(subject: &Subject<B>) -> Verdict {
    let parts = sequences(&[60, 40]);
    let weights = Random::new(601).matrix(5, COLS);
    let mut hessian = subject.solver.hessian(COLS)?;
    hessian.update(parts[0].view())?;
    let before = hessian.to_array()?;
    let settings = LayerSettings::new(Pattern::unstructured(0.5)?);
    let mut first = None;
    for act_order in [false, true, false] {
        let settings = settings.clone().with_act_order(act_order);
        let solution = subject
            .solver
            .prune(weights.view(), &mut hessian, &settings)?;
        same_bits("the Hessian after a layer", &hessian.to_array()?, &before)?;
        if !act_order {
            let weights = first.get_or_insert_with(|| solution.weights.clone());
            same_bits(
                "the same layer on the same Hessian",
                &solution.weights,
                weights,
            )?;
        }
    }
    hessian.update(parts[1].view())?;
    let views: Vec<Activations<'_>> = parts.iter().map(|part| part.view().into()).collect();
    check("the Hessian continued after a layer", &hessian, &views, 2)?;
    let mut other = subject.solver.hessian(COLS)?;
    other.update(parts[1].view())?;
    drop(
        subject
            .solver
            .prune(weights.view(), &mut other, &settings)?,
    );
    let mut merged = subject.solver.hessian(COLS)?;
    merged.update(parts[0].view())?;
    drop(
        subject
            .solver
            .prune(weights.view(), &mut merged, &settings)?,
    );
    merged.merge(&other)?;
    check("two Hessians merged after a layer each", &merged, &views, 2)
}

fn from_matrix<B: Backend>(subject: &Subject<B>) -> Verdict {
    let x = sequences(&[90]).remove(0);
    let weights = Random::new(602).matrix(9, COLS);
    let settings = LayerSettings::new(Pattern::unstructured(0.5)?);
    let mut streamed = subject.solver.hessian_for("streamed", COLS)?;
    streamed.update(x.view())?;
    let mut ready = subject.solver.hessian_from(streamed.to_array()?.view())?;
    let streamed = subject
        .solver
        .prune(weights.view(), &mut streamed, &settings)?;
    let ready = subject
        .solver
        .prune(weights.view(), &mut ready, &settings)?;
    same_bits(
        "weights from a ready Hessian",
        &ready.weights,
        &streamed.weights,
    )?;
    let report = &streamed.report;
    ensure!(
        (report.layer.as_str(), report.tokens, report.sequences) == ("streamed", 90, 1),
        "the report names layer {:?}, {} tokens, {} sequences",
        report.layer,
        report.tokens,
        report.sequences
    );
    Ok(())
}
