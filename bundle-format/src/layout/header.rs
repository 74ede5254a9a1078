//! The header: written, parsed, and held against the file.

use super::{
    CHUNK_LEN, DIGEST_LEN, E_FLAGS, E_HASH, E_KIND, E_OFFSET, E_RAW_LEN, E_STORED_LEN, ENTRY_LEN,
    F_CHUNK_LEN, F_CODE_HASH, F_FILE_LEN, F_HEADER_HASH, F_HEADER_LEN, F_MAGIC, F_PADDING,
    F_ROOT_HASH, F_SECTIONS, F_TABLE, F_VERSION, HEADER_LEN, MAGIC, Section, SectionKind, VERSION,
    check_hash, check_zero, get_digest, get_u32, get_u64, le_u32, malformed, part, put, tree_len,
    unsupported,
};
use crate::error::Error;
use crate::hash::{self, Digest};

/// The header: what a file says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    pub file_len: u64,
    pub code_hash: Digest,
    /// One of each kind, in the order of [`SectionKind::ALL`].
    pub sections: Vec<Section>,
}

impl Header {
    /// A header of sections that lie where their lengths put them; their offsets are overwritten. The lengths are below
    /// [`SectionKind::max_raw_len`], so no sum overflows.
    pub fn place(mut sections: Vec<Section>, code_hash: Digest) -> Header {
        let mut end = HEADER_LEN as u64;
        for section in &mut sections {
            section.offset = end.next_multiple_of(section.kind.align());
            end = section.offset + section.stored_len;
        }
        Header {
            file_len: end,
            code_hash,
            sections,
        }
    }

    pub fn section(&self, kind: SectionKind) -> &Section {
        // `parse` and `place` keep one of each kind, in the order of `ALL`, which is the order of the ids.
        &self.sections[kind.id() as usize - 1]
    }

    /// The root hash: of what the bundle holds, not of where it lies, and without the signature, so that signing a bundle
    /// keeps its root.
    pub fn root(&self) -> Digest {
        let bytes = self.encode_unhashed();
        let mut parts = vec![
            part(&bytes, F_MAGIC),
            part(&bytes, F_VERSION),
            part(&bytes, F_HEADER_LEN),
            part(&bytes, F_SECTIONS),
            part(&bytes, F_CHUNK_LEN),
            part(&bytes, F_CODE_HASH),
        ];
        let entries = part(&bytes, F_TABLE).chunks_exact(ENTRY_LEN);
        for (section, entry) in self.sections.iter().zip(entries) {
            if section.kind != SectionKind::Signature {
                parts.extend(
                    [E_KIND, E_FLAGS, E_STORED_LEN, E_RAW_LEN, E_HASH].map(|f| part(entry, f)),
                );
            }
        }
        hash::derive(hash::ROOT_CONTEXT, &parts)
    }

    pub fn encode(&self) -> [u8; HEADER_LEN] {
        let mut bytes = self.encode_unhashed();
        put(&mut bytes, F_ROOT_HASH, &self.root().0);
        let digest = header_hash(&bytes);
        put(&mut bytes, F_HEADER_HASH, &digest.0);
        bytes
    }

    /// Everything but the header hash and the root hash, which stay zero.
    fn encode_unhashed(&self) -> [u8; HEADER_LEN] {
        let mut bytes = [0; HEADER_LEN];
        put(&mut bytes, F_MAGIC, &MAGIC);
        put(&mut bytes, F_VERSION, &VERSION.to_le_bytes());
        put(&mut bytes, F_HEADER_LEN, &(HEADER_LEN as u32).to_le_bytes());
        put(&mut bytes, F_FILE_LEN, &self.file_len.to_le_bytes());
        let count = self.sections.len() as u32;
        put(&mut bytes, F_SECTIONS, &count.to_le_bytes());
        put(&mut bytes, F_CHUNK_LEN, &(CHUNK_LEN as u32).to_le_bytes());
        put(&mut bytes, F_CODE_HASH, &self.code_hash.0);
        let table = &mut bytes[F_TABLE.offset..F_TABLE.offset + F_TABLE.size];
        for (section, entry) in self.sections.iter().zip(table.chunks_exact_mut(ENTRY_LEN)) {
            entry.copy_from_slice(&section.encode());
        }
        bytes
    }

    /// Parses and checks the header of a file.
    pub fn parse(file: &[u8]) -> Result<Header, Error> {
        check_magic(file)?;
        // The version comes before the length: another version's header may be shorter.
        let version = file.get(F_VERSION.offset..F_VERSION.offset + F_VERSION.size);
        if let Some(version) = version.map(le_u32)
            && version != VERSION
        {
            return Err(unsupported(
                F_VERSION.offset,
                "version of the format",
                VERSION,
                version,
            ));
        }
        let Some(bytes) = file.first_chunk::<HEADER_LEN>() else {
            return Err(Error::Truncated {
                section: "header",
                offset: 0,
                expected: HEADER_LEN as u64,
                found: file.len() as u64,
            });
        };
        check_hash(
            "header",
            0,
            HEADER_LEN as u64,
            get_digest(bytes, F_HEADER_HASH),
            header_hash(bytes),
        )?;

        let constants = [
            (F_HEADER_LEN, HEADER_LEN as u32),
            (F_SECTIONS, SectionKind::ALL.len() as u32),
            (F_CHUNK_LEN, CHUNK_LEN as u32),
        ];
        for (field, expected) in constants {
            let found = get_u32(bytes, field);
            if found != expected {
                return Err(unsupported(field.offset, field.name, expected, found));
            }
        }
        check_zero("header", F_PADDING.offset as u64, part(bytes, F_PADDING))?;

        let mut sections = Vec::with_capacity(SectionKind::ALL.len());
        let entries = part(bytes, F_TABLE).chunks_exact(ENTRY_LEN);
        for (i, (&kind, entry)) in SectionKind::ALL.iter().zip(entries).enumerate() {
            sections.push(Section::parse(entry, F_TABLE.offset + i * ENTRY_LEN, kind)?);
        }
        let header = Header {
            file_len: get_u64(bytes, F_FILE_LEN),
            code_hash: get_digest(bytes, F_CODE_HASH),
            sections,
        };
        let root = get_digest(bytes, F_ROOT_HASH);
        let computed = header.root();
        if root != computed {
            return Err(malformed(F_ROOT_HASH.offset, "root hash", computed, root));
        }
        Ok(header)
    }

    /// Checks that every section lies where the lengths of those before it put it, and that the file ends with the last.
    pub fn check_layout(&self, file_len: u64) -> Result<(), Error> {
        let placed = Header::place(self.sections.clone(), self.code_hash);
        for (i, (section, placed)) in self.sections.iter().zip(&placed.sections).enumerate() {
            if section.offset != placed.offset {
                return Err(malformed(
                    F_TABLE.offset + i * ENTRY_LEN + E_OFFSET.offset,
                    format!("offset of the {} section", section.kind),
                    placed.offset,
                    section.offset,
                ));
            }
        }
        if self.file_len != placed.file_len {
            return Err(malformed(
                F_FILE_LEN.offset,
                "length of the file by its header",
                placed.file_len,
                self.file_len,
            ));
        }
        let tree = self.section(SectionKind::WeightsTree);
        let expected = tree_len(self.section(SectionKind::Weights).raw_len);
        if tree.raw_len != expected {
            return Err(malformed(
                F_TABLE.offset
                    + (SectionKind::WeightsTree.id() as usize - 1) * ENTRY_LEN
                    + E_RAW_LEN.offset,
                "length of the weights-tree section",
                expected,
                tree.raw_len,
            ));
        }
        if file_len > self.file_len {
            return Err(malformed(
                self.file_len as usize,
                "bytes behind the last section",
                "the end of the file",
                format!("{} bytes more", file_len - self.file_len),
            ));
        }
        if file_len < self.file_len {
            // The section that holds the first missing byte: the first whose end lies behind it.
            let cut = self
                .sections
                .iter()
                .find(|s| s.offset + s.stored_len > file_len)
                .unwrap_or(self.section(SectionKind::Weights));
            return Err(Error::Truncated {
                section: cut.kind.name(),
                offset: cut.offset,
                expected: self.file_len,
                found: file_len,
            });
        }
        Ok(())
    }
}

fn check_magic(file: &[u8]) -> Result<(), Error> {
    let head = &file[..file.len().min(MAGIC.len())];
    if head == MAGIC {
        return Ok(());
    }
    if MAGIC.starts_with(head) {
        return Err(Error::Truncated {
            section: "header",
            offset: 0,
            expected: HEADER_LEN as u64,
            found: file.len() as u64,
        });
    }
    Err(Error::NotABundle {
        expected: MAGIC.escape_ascii().to_string(),
        found: head.escape_ascii().to_string(),
    })
}

/// Hash of a header, its own hash taken as zero.
fn header_hash(bytes: &[u8; HEADER_LEN]) -> Digest {
    let mut unhashed = *bytes;
    put(&mut unhashed, F_HEADER_HASH, &[0; DIGEST_LEN]);
    hash::derive(hash::HEADER_CONTEXT, &[&unhashed])
}
