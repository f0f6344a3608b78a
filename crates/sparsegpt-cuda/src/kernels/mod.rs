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
    invert::KERNELS,
    iterate::KERNELS,
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

/// A module of one kernel that multiplies; `operations::product` says what the parameters mean.
macro_rules! product_module {
    ($module:ident, $file:literal, $kernel:ident) => {
        module! {
            $module, $file,
            $kernel = $file[256](
                a: Address,
                a_row: U32,
                a_depth: U32,
                b: Address,
                b_depth: U32,
                b_col: U32,
                source: Address,
                source_ld: U32,
                c: Address,
                c_ld: U32,
                rows: U32,
                cols: U32,
                depth: U32,
                alpha: F32,
                beta: F32,
                a_form: U32,
                b_form: U32,
                b_shift: U32,
                c_form: U32,
            );
        }
    };
}

/// A module of one kernel that factors a leaf.
macro_rules! leaf_module {
    ($module:ident, $file:literal, $kernel:ident = $name:literal) => {
        module! {
            $module, $file,
            $kernel = $name[256](
                h: Address,
                h_ld: U32,
                starts: Address,
                inverse: Address,
                first: U32,
                cols: U32,
                status: Address,
            );
        }
    };
}

pub(crate) mod elementwise;
pub(crate) mod factor;
pub(crate) mod factor_double;
pub(crate) mod gemm;
pub(crate) mod gemm_double;
pub(crate) mod gemm_tensor;
pub(crate) mod gram;
pub(crate) mod grid;
pub(crate) mod invert;
pub(crate) mod iterate;
pub(crate) mod select;
pub(crate) mod sweep;
