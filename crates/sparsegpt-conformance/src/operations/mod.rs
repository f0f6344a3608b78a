//! Every operation of a backend, against the host implementation and against f64.

mod blocks;
mod factor;
mod gram;
mod grid;
mod iterate;
mod memory;
mod products;
mod select;
mod sweep;

use sparsegpt::backend::Backend;

use crate::check::Cases;

pub(crate) fn add_cases<B: Backend>(cases: &mut Cases<B>) {
    memory::add_cases(cases);
    gram::add_cases(cases);
    factor::add_cases(cases);
    select::add_cases(cases);
    grid::add_cases(cases);
    sweep::add_cases(cases);
    products::add_cases(cases);
    blocks::add_cases(cases);
    iterate::add_cases(cases);
}
