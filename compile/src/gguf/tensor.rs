//! The file's list of tensors, and the checks of where their data lies.

use bundle_format::plan::Encoding;

use super::cursor::Cursor;
use super::error::{Error, ErrorKind, Fault, Name, Place};
use super::metadata::read_name;
use super::tensor_type::TensorType;

/// Dimensions that a tensor can have.
pub const MAX_DIMS: usize = 4;

/// The fewest bytes of a tensor's entry: the name's length, one byte of name, the number of dimensions, one dimension,
/// the type, the offset.
pub(super) const MIN_ENTRY_BYTES: u64 = 8 + 1 + 4 + 8 + 4 + 8;

/// A tensor of the file.
#[derive(Clone, Debug, PartialEq)]
pub struct TensorInfo<'a> {
    pub name: &'a str,
    dims: [u64; MAX_DIMS],
    dim_count: usize,
    pub ty: TensorType,
    /// Of the data, from the file's start.
    pub offset: u64,
    pub(super) data: &'a [u8],
}

impl<'a> TensorInfo<'a> {
    /// Sizes, innermost first: a matrix is `[columns, rows]`. At least one, none zero.
    pub fn dims(&self) -> &[u64] {
        &self.dims[..self.dim_count]
    }

    /// Elements of a row: the innermost dimension.
    pub fn cols(&self) -> u64 {
        self.dims[0]
    }

    /// Rows: the product of the other dimensions.
    pub fn rows(&self) -> u64 {
        self.dims[1..self.dim_count].iter().product()
    }

    pub fn elements(&self) -> u64 {
        self.cols() * self.rows()
    }

    /// The bundle's encoding of the same bytes.
    ///
    /// # Errors
    /// [`ErrorKind::UnsupportedType`] names the tensor and its type.
    pub fn encoding(&self) -> Result<Encoding, Error> {
        self.ty.encoding().ok_or_else(|| Error {
            place: Place::Tensor(Name::from(self.name)),
            offset: Some(self.offset),
            kind: ErrorKind::UnsupportedType {
                type_name: self.ty.name,
            },
        })
    }
}

/// A tensor's entry, before its data is looked for.
pub(super) struct Entry<'a> {
    name: &'a str,
    dims: [u64; MAX_DIMS],
    dim_count: usize,
    ty: TensorType,
    /// Of the data, from the start of the tensor data.
    start: u64,
    bytes: u64,
    /// Of the entry, from the file's start.
    offset: u64,
}

impl<'a> Entry<'a> {
    /// Reads entry `index`.
    pub fn read(cursor: &mut Cursor<'a>, index: u64) -> Result<Self, Error> {
        let offset = cursor.offset();
        let name = read_name(cursor).map_err(|fault| fault.at(Place::TensorEntry(index)))?;
        Self::read_named(cursor, name, offset)
            .map_err(|fault| fault.at(Place::Tensor(Name::from(name))))
    }

    fn read_named(cursor: &mut Cursor<'a>, name: &'a str, offset: u64) -> Result<Self, Fault> {
        let fault = |kind| Fault { offset, kind };
        let dim_count = cursor.u32("a number of dimensions")?;
        if dim_count == 0 || dim_count > MAX_DIMS as u32 {
            return Err(fault(ErrorKind::DimensionCount {
                found: dim_count,
                most: MAX_DIMS as u32,
            }));
        }
        let dim_count = dim_count as usize;
        let mut dims = [1; MAX_DIMS];
        for dim in &mut dims[..dim_count] {
            *dim = cursor.u64("a dimension")?;
        }
        let found = cursor.u32("a tensor's type")?;
        let ty =
            TensorType::from_id(found).ok_or_else(|| fault(ErrorKind::TensorType { found }))?;
        let start = cursor.u64("a tensor's offset")?;
        let bytes = data_bytes(&dims[..dim_count], ty).map_err(fault)?;
        Ok(Entry {
            name,
            dims,
            dim_count,
            ty,
            start,
            bytes,
            offset,
        })
    }

    /// Finds the tensor in `data`, the file's tensor data, which starts at `data_offset`.
    pub fn locate(
        self,
        data: &'a [u8],
        data_offset: u64,
        alignment: u64,
    ) -> Result<TensorInfo<'a>, Error> {
        let fault = |kind| Error {
            place: Place::Tensor(Name::from(self.name)),
            offset: Some(self.offset),
            kind,
        };
        if !self.start.is_multiple_of(alignment) {
            return Err(fault(ErrorKind::Misaligned {
                found: self.start,
                alignment,
            }));
        }
        let available = data.len() as u64;
        let end = self.start.checked_add(self.bytes);
        let Some(end) = end.filter(|&end| end <= available) else {
            return Err(fault(ErrorKind::DataTruncated {
                start: self.start,
                needed: self.bytes,
                available,
            }));
        };
        Ok(TensorInfo {
            name: self.name,
            dims: self.dims,
            dim_count: self.dim_count,
            ty: self.ty,
            offset: data_offset + self.start,
            data: &data[self.start as usize..end as usize],
        })
    }
}

/// Bytes of a tensor's data.
pub(super) fn data_bytes(dims: &[u64], ty: TensorType) -> Result<u64, ErrorKind> {
    if let Some(dimension) = dims.iter().position(|&dim| dim == 0) {
        return Err(ErrorKind::ZeroDimension { dimension });
    }
    if !dims[0].is_multiple_of(ty.block as u64) {
        return Err(ErrorKind::RowLength {
            type_name: ty.name,
            block: ty.block,
            found: dims[0],
        });
    }
    let elements = dims
        .iter()
        .try_fold(1u64, |product, &dim| product.checked_mul(dim));
    elements
        .filter(|&elements| elements < 1 << 63)
        .and_then(|elements| ty.bytes(elements))
        .filter(|&bytes| bytes < 1 << 63)
        .ok_or_else(|| ErrorKind::TooLarge {
            dims: dims.to_vec(),
        })
}

/// Checks that no two tensors share data.
pub(super) fn check_overlap(tensors: &[TensorInfo<'_>]) -> Result<(), Error> {
    let mut by_offset: Vec<&TensorInfo<'_>> = tensors.iter().collect();
    by_offset.sort_by_key(|tensor| tensor.offset);
    for pair in by_offset.windows(2) {
        if pair[0].offset + pair[0].data.len() as u64 > pair[1].offset {
            return Err(Error {
                place: Place::Tensor(Name::from(pair[1].name)),
                offset: Some(pair[1].offset),
                kind: ErrorKind::Overlap {
                    other: Name::from(pair[0].name),
                },
            });
        }
    }
    Ok(())
}
