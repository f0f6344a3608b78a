//! The kernels: their text, and what a launch must know of each.

/// The type of a kernel's parameter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Parameter {
    /// `.u64`, an address.
    Address,
    /// `.u32`
    U32,
    /// `.f32`
    F32,
}

/// A PTX file.
#[derive(Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Module {
    /// The file's name without `.ptx`.
    pub name: &'static str,
    /// The text.
    pub text: &'static str,
}

/// A kernel of a module.
#[derive(Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Kernel {
    /// The module it is in.
    pub module: &'static Module,
    /// The name of its entry.
    pub name: &'static str,
    /// Threads in a block; blocks are one-dimensional (`.reqntid` in the text).
    pub threads: u32,
    /// Its parameters in order, with their names in the text.
    pub parameters: &'static [(&'static str, Parameter)],
}

/// Each module's kernels.
const MODULES: &[&[&Kernel]] = &[
    elementwise::KERNELS,
    factor::KERNELS,
    factor_double::KERNELS,
    gemm::KERNELS,
    gemm_double::KERNELS,
    gemm_tensor::KERNELS,
    gram::KERNELS,
    grid::KERNELS,
    select::KERNELS,
    sweep::KERNELS,
];

/// All kernels, module by module.
pub fn all() -> impl Iterator<Item = &'static Kernel> {
    MODULES.iter().flat_map(|kernels| kernels.iter().copied())
}

/// A module, and its kernels: name, threads in a block, parameters. One a file, which then has a list of them all,
/// `KERNELS`, for [`MODULES`].
macro_rules! module {
    ($module:ident, $file:literal, $($kernel:ident = $name:literal [$threads:literal] ($($parameter:ident: $type:ident),* $(,)?);)*) => {
        pub(crate) static $module: $crate::kernels::Module = $crate::kernels::Module {
            name: $file,
            text: include_str!(concat!($file, ".ptx")),
        };
        $(pub(crate) static $kernel: $crate::kernels::Kernel = $crate::kernels::Kernel {
            module: &$module,
            name: $name,
            threads: $threads,
            parameters: &[$((stringify!($parameter), $crate::kernels::Parameter::$type)),*],
        };)*
        pub(crate) static KERNELS: &[&$crate::kernels::Kernel] = &[$(&$kernel),*];
    };
}
#[allow(unused_imports)]
pub(crate) use module;

pub(crate) mod elementwise;
pub(crate) mod factor;
pub(crate) mod factor_double;
pub(crate) mod gemm;
pub(crate) mod gemm_double;
pub(crate) mod gemm_tensor;
pub(crate) mod gram;
pub(crate) mod grid;
pub(crate) mod select;
pub(crate) mod sweep;
