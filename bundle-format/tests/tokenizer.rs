//! The tokenizer section: what is written is read, and no damage does more than give an error.

use bundle_format::tokenizer::{Attr, Error, ModelKind, NONE, PreTokenizer, Special, Tables, View};
use proptest::prelude::*;

/// `a`, `b`, `ab`, `aba`, `<end>`, and an unused token.
fn tables() -> Tables {
    let mut byte_tokens = [None; 256];
    byte_tokens[b'a' as usize] = Some(0);
    byte_tokens[b'b' as usize] = Some(1);
    let mut special = [None; Special::ALL.len()];
    special[Special::Eos.index()] = Some(4);
    Tables {
        model: ModelKind::ByteBpe,
        pre: PreTokenizer::Smollm,
        add_bos: false,
        add_eos: true,
        add_space_prefix: false,
        ignore_merges: false,
        space_joins: Some(1 << 127 | 1 << b'a'),
        tokens: [&b"a"[..], b"b", b"ab", b"aba", b"<end>", b""]
            .map(Vec::from)
            .to_vec(),
        attrs: vec![
            Attr::NORMAL,
            Attr::NORMAL,
            Attr::NORMAL,
            Attr::NORMAL,
            Attr::CONTROL,
            Attr::UNUSED,
        ],
        scores: Some(vec![0.0, -1.0, -2.0, -3.0, 0.0, 0.0]),
        byte_tokens,
        merges: vec![(0, 1, 2), (2, 0, 3)],
        texts: vec![0, 3],
        special,
        end_of_generation: vec![4],
        chat_template: Some("{{ messages }}".into()),
    }
}

#[test]
fn what_is_written_is_read() {
    let tables = tables();
    let section = tables.write().unwrap();
    assert_eq!(section, tables.write().unwrap());
    let view = View::open(&section).unwrap();
    assert_eq!(
        (view.model(), view.pre(), view.len()),
        (tables.model, tables.pre, 6)
    );
    assert!(view.flags().add_eos && !view.flags().add_bos && view.flags().scores);
    for (id, token) in tables.tokens.iter().enumerate() {
        assert_eq!(view.token(id as u32), Some(token.as_slice()));
        assert_eq!(view.attr(id as u32), Some(tables.attrs[id]));
        assert_eq!(
            view.score(id as u32),
            Some(tables.scores.as_ref().unwrap()[id])
        );
    }
    assert_eq!(
        (view.token(6), view.attr(6), view.score(6), view.token(NONE)),
        (None, None, None, None)
    );
    assert_eq!(
        (view.byte_token(b'b'), view.byte_token(b'c')),
        (Some(1), None)
    );
    assert_eq!(view.merge(0, 1).map(|m| (m.rank, m.token)), Some((0, 2)));
    assert_eq!(view.merge(2, 0).map(|m| (m.rank, m.token)), Some((1, 3)));
    assert_eq!(
        [&b"a"[..], b"aba", b"ab", b""].map(|text| view.text_token(text)),
        [Some(0), Some(3), None, None]
    );
    assert_eq!(view.space_joins(), tables.space_joins);
    assert_eq!((view.merge(1, 0), view.merge(NONE, NONE)), (None, None));
    assert_eq!(
        (view.special(Special::Eos), view.special(Special::Bos)),
        (Some(4), None)
    );
    assert_eq!(
        (view.matched_len(), view.matched(0), view.matched(1)),
        (1, Some((4, &b"<end>"[..])), None)
    );
    assert_eq!(view.end_of_generation().collect::<Vec<_>>(), [4]);
    assert!(view.ends_generation(4) && !view.ends_generation(3));
    assert_eq!(view.chat_template(), Some("{{ messages }}"));
}

/// Tokens that are cut out of text keep their marks; text to look up has spaces.
#[test]
fn marks_are_spaces_to_the_text_table() {
    let mut tables = tables();
    tables.model = ModelKind::Scored;
    tables.pre = PreTokenizer::Whole;
    tables.attrs[3] = Attr::USER_DEFINED;
    tables.tokens[3] = "▁x▁".into();
    let section = tables.write().unwrap();
    let view = View::open(&section).unwrap();
    assert_eq!(view.text_token(b" x "), Some(3));
    assert_eq!(view.text_token("▁x▁".as_bytes()), None);
    assert_eq!(view.token(3), Some("▁x▁".as_bytes()));

    tables.texts = vec![6];
    assert!(matches!(tables.write(), Err(Error::Invalid(_))));
    tables.texts = vec![2, 2];
    assert!(matches!(tables.write(), Err(Error::Invalid(_))));
}

#[test]
fn another_version_kind_or_flag_is_named() {
    let section = tables().write().unwrap();
    for (field, name) in [
        (0, "version"),
        (4, "model kind"),
        (8, "pre-tokeniser"),
        (12, "flags"),
    ] {
        let mut other = section.clone();
        other[field..field + 4].copy_from_slice(&99u32.to_le_bytes());
        let error = View::open(&other).unwrap_err();
        let Error::Unsupported {
            offset,
            what,
            found,
            ..
        } = &error
        else {
            panic!("{name}: {error}");
        };
        assert!(
            *offset == field as u64 && what.contains(name) && *found == 99,
            "{error}"
        );
    }
}

#[test]
fn a_section_cut_anywhere_is_an_error_with_its_offset() {
    let section = tables().write().unwrap();
    for len in 0..section.len() {
        assert!(
            matches!(View::open(&section[..len]), Err(Error::Corrupt { .. })),
            "{len}"
        );
    }
    let longer = [section.as_slice(), &[0; 8]].concat();
    assert!(
        matches!(View::open(&longer), Err(Error::Corrupt { offset, .. }) if offset == section.len() as u64)
    );
}

#[test]
fn tables_that_contradict_each_other_are_not_written() {
    let wrong: [fn(&mut Tables); 8] = [
        |t| t.attrs.truncate(1),
        |t| t.scores = Some(vec![]),
        |t| t.merges.push((0, 1, 99)),
        |t| t.merges.push((0, 1, 2)),
        |t| t.end_of_generation = vec![4, 4],
        |t| t.special[0] = Some(6),
        |t| t.add_bos = true,
        |t| t.tokens[4] = vec![0xff],
    ];
    for (i, change) in wrong.iter().enumerate() {
        let mut tables = tables();
        change(&mut tables);
        assert!(matches!(tables.write(), Err(Error::Invalid(_))), "{i}");
    }
}

/// Reads all that a view offers.
fn read_all(view: &View<'_>) {
    for id in 0..view.len() as u32 + 2 {
        view.token(id);
        view.attr(id);
        view.score(id);
        view.ends_generation(id);
        for other in 0..view.len() as u32 + 2 {
            assert!(
                view.merge(id, other)
                    .is_none_or(|merge| (merge.token as usize) < view.len())
            );
        }
    }
    for byte in 0..=255 {
        assert!(
            view.byte_token(byte)
                .is_none_or(|id| (id as usize) < view.len())
        );
    }
    for which in Special::ALL {
        assert!(
            view.special(which)
                .is_none_or(|id| (id as usize) < view.len())
        );
    }
    for i in 0..view.matched_len() {
        assert!(
            view.matched(i)
                .is_some_and(|(_, bytes)| std::str::from_utf8(bytes).is_ok())
        );
    }
}

#[test]
fn every_flipped_bit_is_an_error_or_harmless() {
    let section = tables().write().unwrap();
    for at in 0..section.len() {
        for bit in 0..8 {
            let mut damaged = section.clone();
            damaged[at] ^= 1 << bit;
            if let Ok(view) = View::open(&damaged) {
                read_all(&view);
            }
        }
    }
}

proptest! {
    #[test]
    fn damaged_words_are_errors_or_harmless(
        changes in proptest::collection::vec((0usize..1000, prop_oneof![any::<u32>(), 0u32..64, Just(NONE)]), 1..6),
    ) {
        let mut damaged = tables().write().unwrap();
        for (at, word) in changes {
            let at = at * 4 % (damaged.len() - 3);
            damaged[at..at + 4].copy_from_slice(&word.to_le_bytes());
        }
        if let Ok(view) = View::open(&damaged) {
            read_all(&view);
        }
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..2000)) {
        if let Ok(view) = View::open(&bytes) {
            read_all(&view);
        }
    }
}
