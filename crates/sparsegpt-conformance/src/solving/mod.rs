//! Whole layers through the solver.

mod calibration;
mod composition;
mod counts;
mod errors;
mod invariance;
mod ladder;
mod layer;
mod losses;
mod methods;
mod quantization;

use sparsegpt::backend::Backend;

use crate::check::Cases;

pub(crate) fn add_cases<B: Backend>(cases: &mut Cases<B>) {
    counts::add_cases(cases);
    losses::add_cases(cases);
    invariance::add_cases(cases);
    quantization::add_cases(cases);
    methods::add_cases(cases);
    composition::add_cases(cases);
    calibration::add_cases(cases);
    ladder::add_cases(cases);
    errors::add_cases(cases);
}
