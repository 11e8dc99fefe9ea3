//! How fields are written: little-endian numbers, lengths before text and lists.

use crate::block::{BlockIndex, PageSet};
use crate::ids::{
    BucketName, Epoch, Etag, FileId, Generation, Handle, InvalidId, NodeName, ObjectKey, ObjectPath, Scheme,
    SessionId, StoreFingerprint, StoreIdentity, WorkerUuid,
};

/// A payload that cannot be read as the message its kind says it is.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// The payload ends within a field.
    #[error("the message ends early")]
    Truncated,
    /// Text that is not UTF-8.
    #[error("text is not UTF-8")]
    NotUtf8,
    /// A number that names nothing this version knows.
    #[error("{what} has the unknown value {value}")]
    UnknownValue {
        /// The field.
        what: &'static str,
        /// Its value.
        value: u64,
    },
    /// A field that is no valid id.
    #[error(transparent)]
    InvalidId(#[from] InvalidId),
}

/// Something that can be written into a payload.
pub trait Encode {
    /// Appends the field.
    fn encode(&self, out: &mut Vec<u8>);
}

/// Something that can be read from a payload.
pub trait Decode: Sized {
    /// Takes the field from the front of `input`.
    fn decode(input: &mut &[u8]) -> Result<Self, DecodeError>;
}

fn take<'a>(input: &mut &'a [u8], count: usize) -> Result<&'a [u8], DecodeError> {
    let (front, rest) = input.split_at_checked(count).ok_or(DecodeError::Truncated)?;
    *input = rest;
    Ok(front)
}

macro_rules! number {
    ($($type:ty),*) => {$(
        impl Encode for $type {
            fn encode(&self, out: &mut Vec<u8>) {
                out.extend_from_slice(&self.to_le_bytes());
            }
        }

        impl Decode for $type {
            fn decode(input: &mut &[u8]) -> Result<Self, DecodeError> {
                let mut bytes = [0; size_of::<$type>()];
                bytes.copy_from_slice(take(input, size_of::<$type>())?);
                Ok(Self::from_le_bytes(bytes))
            }
        }
    )*};
}
number!(u8, u16, u32, u64, u128);

macro_rules! wrapped_number {
    ($($type:ident),*) => {$(
        impl Encode for $type {
            fn encode(&self, out: &mut Vec<u8>) {
                self.0.encode(out);
            }
        }

        impl Decode for $type {
            fn decode(input: &mut &[u8]) -> Result<Self, DecodeError> {
                Ok(Self(Decode::decode(input)?))
            }
        }
    )*};
}
wrapped_number!(Epoch, FileId, SessionId, Handle, BlockIndex);

impl Encode for bool {
    fn encode(&self, out: &mut Vec<u8>) {
        out.push(u8::from(*self));
    }
}

impl Decode for bool {
    fn decode(input: &mut &[u8]) -> Result<Self, DecodeError> {
        match u8::decode(input)? {
            0 => Ok(false),
            1 => Ok(true),
            value => Err(DecodeError::UnknownValue {
                what: "a flag",
                value: value.into(),
            }),
        }
    }
}

impl Encode for [u8; 16] {
    fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(self);
    }
}

impl Decode for [u8; 16] {
    fn decode(input: &mut &[u8]) -> Result<Self, DecodeError> {
        let mut bytes = [0; 16];
        bytes.copy_from_slice(take(input, 16)?);
        Ok(bytes)
    }
}

macro_rules! sixteen_bytes {
    ($($type:ident),*) => {$(
        impl Encode for $type {
            fn encode(&self, out: &mut Vec<u8>) {
                self.as_bytes().encode(out);
            }
        }

        impl Decode for $type {
            fn decode(input: &mut &[u8]) -> Result<Self, DecodeError> {
                Decode::decode(input).map(Self::from_bytes)
            }
        }
    )*};
}
sixteen_bytes!(StoreFingerprint, WorkerUuid);

/// Text behind a u16 length. Longer text is cut at a character's end: senders bound what matters.
impl Encode for str {
    fn encode(&self, out: &mut Vec<u8>) {
        let text = &self[..self.floor_char_boundary(usize::from(u16::MAX))];
        (text.len() as u16).encode(out);
        out.extend_from_slice(text.as_bytes());
    }
}

impl Encode for String {
    fn encode(&self, out: &mut Vec<u8>) {
        self.as_str().encode(out);
    }
}

impl Decode for String {
    fn decode(input: &mut &[u8]) -> Result<Self, DecodeError> {
        let length = u16::decode(input)?;
        let bytes = take(input, usize::from(length))?;
        std::str::from_utf8(bytes)
            .map(str::to_owned)
            .map_err(|_| DecodeError::NotUtf8)
    }
}

macro_rules! text {
    ($($type:ident),*) => {$(
        impl Encode for $type {
            fn encode(&self, out: &mut Vec<u8>) {
                self.as_str().encode(out);
            }
        }

        impl Decode for $type {
            fn decode(input: &mut &[u8]) -> Result<Self, DecodeError> {
                Ok(Self::new(String::decode(input)?)?)
            }
        }
    )*};
}
text!(BucketName, ObjectKey, StoreIdentity, NodeName, Etag);

impl Encode for Scheme {
    fn encode(&self, out: &mut Vec<u8>) {
        self.as_str().encode(out);
    }
}

impl Decode for Scheme {
    fn decode(input: &mut &[u8]) -> Result<Self, DecodeError> {
        Ok(String::decode(input)?.parse()?)
    }
}

impl<T: Encode> Encode for Option<T> {
    fn encode(&self, out: &mut Vec<u8>) {
        self.is_some().encode(out);
        if let Some(value) = self {
            value.encode(out);
        }
    }
}

impl<T: Decode> Decode for Option<T> {
    fn decode(input: &mut &[u8]) -> Result<Self, DecodeError> {
        if bool::decode(input)? {
            T::decode(input).map(Some)
        } else {
            Ok(None)
        }
    }
}

/// A list behind a u16 count. Every element takes at least a byte, so a lying count ends with the payload.
impl<T: Encode> Encode for Vec<T> {
    fn encode(&self, out: &mut Vec<u8>) {
        let count = u16::try_from(self.len()).expect("senders split longer lists");
        count.encode(out);
        for element in self {
            element.encode(out);
        }
    }
}

impl<T: Decode> Decode for Vec<T> {
    fn decode(input: &mut &[u8]) -> Result<Self, DecodeError> {
        let count = u16::decode(input)?;
        if usize::from(count) > input.len() {
            return Err(DecodeError::Truncated);
        }
        (0..count).map(|_| T::decode(input)).collect()
    }
}

/// A page set is a u8 count of u64 words, lowest pages first, so that blocks can have more pages one day.
impl Encode for PageSet {
    fn encode(&self, out: &mut Vec<u8>) {
        2_u8.encode(out);
        self.bits().encode(out);
    }
}

impl Decode for PageSet {
    fn decode(input: &mut &[u8]) -> Result<Self, DecodeError> {
        match u8::decode(input)? {
            0 => Ok(Self::EMPTY),
            1 => Ok(Self::from_bits(u64::decode(input)?.into())),
            2 => Ok(Self::from_bits(u128::decode(input)?)),
            words => Err(DecodeError::UnknownValue {
                what: "the words of a page set",
                value: words.into(),
            }),
        }
    }
}

macro_rules! structure {
    ($type:ident { $($field:ident),* }) => {
        impl Encode for $type {
            #[allow(unused_variables, reason = "a message may have no fields")]
            fn encode(&self, out: &mut Vec<u8>) {
                $(self.$field.encode(out);)*
            }
        }

        impl Decode for $type {
            #[allow(unused_variables, reason = "a message may have no fields")]
            fn decode(input: &mut &[u8]) -> Result<Self, DecodeError> {
                $(let $field = Decode::decode(input)?;)*
                Ok(Self { $($field),* })
            }
        }
    };
}
pub(super) use structure;

structure!(Generation { etag, size_bytes });
structure!(ObjectPath { scheme, bucket, key });
