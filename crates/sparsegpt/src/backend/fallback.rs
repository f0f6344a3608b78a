//! Default bodies of the trait: download, run the host implementation, upload.

use std::ops::Range;

use ndarray::s;

use super::host;
use super::{
    Adam, Backend, FitGrid, Gemm, Precision, Project, PruneRef, Refit, Select, UpdateRows,
};

pub(super) fn combine<B: Backend>(
    backend: &B,
    target: &mut B::Matrix,
    alpha: f32,
    other: &B::Matrix,
    beta: f32,
) -> Result<(), B::Error> {
    let mut sum = backend.download(target)?;
    host::combine(sum.view_mut(), alpha, backend.download(other)?.view(), beta);
    *target = backend.upload(sum.view())?;
    Ok(())
}

pub(super) fn permute_hessian<B: Backend>(
    backend: &B,
    h: &B::Matrix,
    order: &[usize],
) -> Result<B::Matrix, B::Error> {
    let h = backend.download(h)?;
    backend.upload(host::permute_hessian(h.view(), order).view())
}

pub(super) fn row_energies<B: Backend>(
    backend: &B,
    w: &B::Matrix,
    h: &B::Matrix,
    diagonal: &[f32],
) -> Result<Vec<f64>, B::Error> {
    let (w, h) = (backend.download(w)?, backend.download(h)?);
    Ok(host::row_energies(w.view(), h.view(), diagonal))
}

pub(super) fn select<B: Backend>(backend: &B, args: Select<'_, B>) -> Result<B::Mask, B::Error> {
    let Select {
        weights,
        scales,
        columns,
        rule,
        forced,
        protected,
    } = args;
    let weights = backend.download(weights)?;
    let scales = backend.download(scales)?;
    let forced = forced.map(|mask| backend.download_mask(mask)).transpose()?;
    let protected = protected
        .map(|mask| backend.download_mask(mask))
        .transpose()?;
    let mask = host::select(
        weights.slice(s![.., columns.clone()]),
        scales.slice(s![0, columns]),
        rule,
        forced.as_ref().map(|mask| mask.view()),
        protected.as_ref().map(|mask| mask.view()),
    );
    backend.upload_mask(mask.view())
}

pub(super) fn fit_grid<B: Backend>(backend: &B, args: FitGrid<'_, B>) -> Result<(), B::Error> {
    let weights = backend.download(args.weights)?;
    let mut scale = backend.download(args.scale)?;
    let mut zero = backend.download(args.zero)?;
    let fit = args
        .grid
        .fit(weights.slice(s![.., args.columns]), args.per_tensor);
    scale.column_mut(args.group).assign(&fit.scale);
    zero.column_mut(args.group).assign(&fit.zero);
    *args.scale = backend.upload(scale.view())?;
    *args.zero = backend.upload(zero.view())?;
    Ok(())
}

pub(super) fn update_rows<B: Backend>(
    backend: &B,
    args: UpdateRows<'_, B>,
) -> Result<Option<B::Mask>, B::Error> {
    let mut weights = backend.download(args.weights)?;
    let factor = backend.download(args.factor)?;
    let mut errors = backend.download(args.errors)?;
    let mut losses = backend.download(args.losses)?;
    let columns = args.columns.clone();
    let fixed = match args.prune {
        PruneRef::Fixed { mask, offset } => Some((backend.download_mask(mask)?, offset)),
        _ => None,
    };
    let prune = match (&args.prune, &fixed) {
        (PruneRef::NofM { zeros, group }, _) => host::SweepPrune::NofM {
            zeros: *zeros,
            group: *group,
        },
        (_, Some((mask, offset))) => {
            host::SweepPrune::Fixed(mask.slice(s![.., *offset..*offset + columns.len()]))
        }
        _ => host::SweepPrune::Keep,
    };
    let grid = args
        .grid
        .as_ref()
        .map(|grid| Ok((backend.download(grid.scale)?, backend.download(grid.zero)?)))
        .transpose()?;
    let grid = args
        .grid
        .as_ref()
        .zip(grid.as_ref())
        .map(|(grid, (scale, zero))| host::SweepGrid {
            kind: grid.kind,
            scale: scale.view(),
            zero: zero.view(),
            groups: grid.groups,
        });
    let error_columns = args.error_offset..args.error_offset + columns.len();
    let mask = host::update_rows(host::Sweep {
        weights: weights.slice_mut(s![.., columns.clone()]),
        factor: factor.slice(s![columns.clone(), columns]),
        errors: errors.slice_mut(s![.., error_columns]),
        losses: losses.column_mut(0),
        prune,
        grid,
    });
    *args.weights = backend.upload(weights.view())?;
    *args.errors = backend.upload(errors.view())?;
    *args.losses = backend.upload(losses.view())?;
    mask.map(|mask| backend.upload_mask(mask.view()))
        .transpose()
}

pub(super) fn open_block<B: Backend>(
    backend: &B,
    weights: &mut B::Matrix,
    rest: &B::Matrix,
    factor: &B::Matrix,
    columns: Range<usize>,
) -> Result<(), B::Error> {
    let (mut current, rest) = (backend.download(weights)?, backend.download(rest)?);
    let factor = backend.download(factor)?;
    host::open_block(
        current.slice_mut(s![.., columns.clone()]),
        rest.slice(s![.., columns.clone()]),
        factor.slice(s![columns.clone(), columns]),
    );
    *weights = backend.upload(current.view())?;
    Ok(())
}

pub(super) fn close_block<B: Backend>(
    backend: &B,
    rest: &mut B::Matrix,
    weights: &B::Matrix,
    columns: Range<usize>,
) -> Result<(), B::Error> {
    let (mut left, weights) = (backend.download(rest)?, backend.download(weights)?);
    let mut block = left.slice_mut(s![.., columns.clone()]);
    block -= &weights.slice(s![.., columns]);
    *rest = backend.upload(left.view())?;
    Ok(())
}

pub(super) fn gemm<B: Backend>(backend: &B, args: Gemm<'_, B>) -> Result<(), B::Error> {
    let mut c = backend.download(args.c)?;
    let a = backend.download(args.a)?;
    let b = backend.download(args.b)?;
    host::gemm(
        c.slice_mut(s![.., args.c_columns]),
        args.alpha,
        a.slice(s![.., args.a_columns]),
        b.slice(s![args.b_rows, args.b_columns]),
    );
    *args.c = backend.upload(c.view())?;
    Ok(())
}

pub(super) fn inverse<B: Backend>(
    backend: &B,
    h: &B::Matrix,
    diagonal: &[f32],
    precision: Precision,
) -> Result<B::Matrix, B::Error> {
    let mut factor = backend.copy(h)?;
    backend.inverse_factor(&mut factor, diagonal, &[diagonal.len()], precision)?;
    let factor = backend.download_owned(factor)?;
    backend.upload_owned(host::inverse_from_factor(factor.view()))
}

pub(super) fn project<B: Backend>(backend: &B, args: Project<'_, B>) -> Result<(), B::Error> {
    let mut sums = backend.download(args.sums)?;
    let mut duals = backend.download(args.duals)?;
    host::project(
        sums.view_mut(),
        duals.view_mut(),
        backend.download(args.dense)?.view(),
        backend.download_mask(args.mask)?.view(),
        backend.download(args.weights)?.row(0),
    );
    *args.sums = backend.upload_owned(sums)?;
    *args.duals = backend.upload_owned(duals)?;
    Ok(())
}

pub(super) fn refit<B: Backend>(backend: &B, args: Refit<'_, B>) -> Result<(), B::Error> {
    let mut weights = backend.download(args.weights)?;
    host::refit(
        weights.view_mut(),
        backend.download(args.dense)?.view(),
        (backend.download(args.h)?.view(), args.diagonal),
        backend.download_mask(args.mask)?.view(),
        args.steps,
    );
    *args.weights = backend.upload_owned(weights)?;
    Ok(())
}

pub(super) fn adam<B: Backend>(backend: &B, args: Adam<'_, B>) -> Result<(), B::Error> {
    let mut weights = backend.download(args.weights)?;
    host::adam(
        weights.view_mut(),
        backend.download(args.dense)?.view(),
        (backend.download(args.h)?.view(), args.diagonal),
        backend.download_mask(args.mask)?.view(),
        args.pace,
    );
    *args.weights = backend.upload_owned(weights)?;
    Ok(())
}
