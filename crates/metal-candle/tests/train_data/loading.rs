//! Batches of files: what is in them, in which order, and from where a loader can go on.

use std::{num::NonZero, sync::Arc};

use metal_candle::{
    data::{Encoder, Record, Supervise},
    train::data::{
        BadLinePolicy, Batch, Batching, Cursor, DataFile, Loader, LoaderOptions, Prefetch, survey,
    },
};
use metal_candle_kernels::cross_entropy::IGNORED;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::support::{DataFolder, jsonl, tiny_chat};

const LIMIT: usize = 48;

/// Texts of these many words, all different.
fn texts(words: &[usize]) -> Vec<String> {
    let vocabulary = ["boat", "sea", "grey", "candle", "metal", "small", "light", "fox"];
    let text = |(number, &count): (usize, &usize)| {
        let words: Vec<&str> =
            (0..count).map(|word| vocabulary[(number + word) % vocabulary.len()]).collect();
        format!("{number} {}", words.join(" "))
    };
    words.iter().enumerate().map(text).collect()
}

fn text_file(texts: &[String]) -> DataFolder {
    DataFolder::new(&jsonl(texts.iter().map(|text| json!({ "text": text }))))
}

fn encoder() -> Arc<Encoder> {
    Arc::new(tiny_chat(Supervise::Assistant))
}

fn loader(file: &Arc<DataFile>, options: LoaderOptions) -> Loader {
    Loader::new(Arc::clone(file), encoder(), options).unwrap()
}

/// The tokens of each example of a batch, read from rows and targets; checks that starts, targets and counts agree.
fn examples(batch: &Batch) -> Vec<Vec<u32>> {
    assert_eq!((batch.starts[0], *batch.starts.last().unwrap() as usize), (0, batch.rows()));
    assert_eq!(batch.targets.len(), batch.rows());
    assert_eq!(batch.examples, batch.starts.len() - 1);
    assert_eq!(batch.counted, batch.targets.iter().filter(|&&target| target != IGNORED).count());
    let sequence = |pair: &[u32]| {
        let rows = pair[0] as usize..pair[1] as usize;
        assert!(!rows.is_empty() && rows.len() <= LIMIT);
        let useful = batch.targets[rows.clone()].iter().rposition(|&target| target != IGNORED).unwrap() + 1;
        let rows = rows.start..rows.start + useful;
        // In texts everything counts, so that each target is the next row's token.
        assert_eq!(batch.tokens[rows.start + 1..rows.end], batch.targets[rows.start..rows.end - 1]);
        [&batch.tokens[rows.clone()], &[batch.targets[rows.end - 1]]].concat()
    };
    let examples: Vec<Vec<u32>> = batch.starts.windows(2).map(sequence).collect();
    assert_eq!(batch.useful, examples.iter().map(|tokens| tokens.len() - 1).sum::<usize>());
    examples
}

/// What every text of a file becomes, cut to the limit.
fn expected(texts: &[String]) -> Vec<Vec<u32>> {
    let encoder = encoder();
    let tokens = |text: &String| {
        let mut example = encoder.encode(&Record::Text(text.clone())).unwrap();
        example.truncate(LIMIT);
        example.tokens
    };
    texts.iter().map(tokens).collect()
}

fn sorted(mut examples: Vec<Vec<u32>>) -> Vec<Vec<u32>> {
    examples.sort();
    examples
}

fn batching() -> impl Strategy<Value = Batching> {
    prop_oneof![Just(Batching::Concatenated), Just(Batching::Packed), Just(Batching::Padded)]
}

prop_compose! {
    fn any_options()(
        batching in batching(),
        batch_size in 1usize..5,
        seed in 0u64..1000,
        shuffle in any::<bool>(),
        window in 1usize..20,
    ) -> LoaderOptions {
        LoaderOptions { batching, batch_size, max_seq_length: LIMIT, seed, shuffle, window }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn an_epoch_holds_every_token_once(
        words in proptest::collection::vec(1usize..60, 1..40),
        options in any_options(),
    ) {
        let texts = texts(&words);
        let folder = text_file(&texts);
        let file = folder.open(BadLinePolicy::Refuse);
        let batches: Vec<Batch> = loader(&file, options).epochs(2).map(Result::unwrap).collect();
        let expected = sorted(expected(&texts));
        for epoch in 0..2 {
            let of_epoch: Vec<&Batch> = batches.iter().filter(|batch| batch.epoch == epoch).collect();
            prop_assert_eq!(sorted(of_epoch.iter().flat_map(|batch| examples(batch)).collect()), expected.clone());
            if options.batching == Batching::Packed {
                prop_assert!(of_epoch.iter().all(|batch| batch.room <= options.batch_size * LIMIT));
            } else {
                let (last, full) = of_epoch.split_last().unwrap();
                let partial = full.iter().filter(|batch| batch.examples < options.batch_size).count();
                prop_assert!(partial + usize::from(last.examples < options.batch_size) <= 1);
            }
            prop_assert!(of_epoch.iter().all(|batch| batch.rows() <= batch.room));
        }
    }

    #[test]
    fn a_loader_goes_on_where_another_stopped(
        words in proptest::collection::vec(0usize..60, 1..40),
        options in any_options(),
        stop in any::<prop::sample::Index>(),
        threads in 1usize..4,
    ) {
        // Every fifth has nothing to learn.
        let lines = texts(&words).into_iter().enumerate().map(|(number, text)| {
            if number % 5 == 4 { json!({ "messages": [{ "role": "user", "content": text }] }) } else { json!({ "text": text }) }
        });
        let folder = DataFolder::new(&jsonl(lines));
        let file = folder.open(BadLinePolicy::Refuse);
        let all: Vec<Batch> = loader(&file, options).epochs(3).map(Result::unwrap).collect();
        let stop = stop.index(all.len());
        let cursor = serde_json::to_string(&all[stop].next).unwrap();
        let cursor: Cursor = serde_json::from_str(&cursor).unwrap();
        // As after a restart: all from the beginning.
        let file = folder.open(BadLinePolicy::Refuse);
        let resumed = loader(&file, options).threads(NonZero::new(threads).unwrap()).at(cursor).unwrap();
        prop_assert_eq!(resumed.cursor(), cursor);
        let rest: Vec<Batch> = resumed.epochs(3).map(Result::unwrap).collect();
        prop_assert_eq!(&rest[..], &all[stop + 1..]);
    }
}

fn first_tokens(batches: &[Batch]) -> Vec<Vec<u32>> {
    batches.iter().flat_map(examples).collect()
}

#[test]
fn the_seed_and_the_epoch_decide_the_order() {
    let texts = texts(&[5; 50]);
    let folder = text_file(&texts);
    let file = folder.open(BadLinePolicy::Refuse);
    let epochs = |seed, shuffle| {
        let options = LoaderOptions { max_seq_length: LIMIT, seed, shuffle, ..LoaderOptions::default() };
        let batches: Vec<Batch> = loader(&file, options).epochs(2).map(Result::unwrap).collect();
        assert_eq!(batches.len(), 26);
        [first_tokens(&batches[..13]), first_tokens(&batches[13..])]
    };
    let [first, second] = epochs(7, true);
    assert_eq!([first.clone(), second.clone()], epochs(7, true));
    let in_file_order = expected(&texts);
    let orders = [first, second, epochs(8, true)[0].clone(), in_file_order.clone()];
    for (index, order) in orders.iter().enumerate() {
        assert!(orders[..index].iter().all(|other| other != order), "{index}");
    }
    assert_eq!(epochs(7, false), [in_file_order.clone(), in_file_order]);
}

#[test]
fn a_thread_that_runs_ahead_changes_nothing() {
    let folder = text_file(&texts(&[3, 30, 8, 12, 40, 2, 9, 21, 5]));
    let file = folder.open(BadLinePolicy::Refuse);
    let options = LoaderOptions {
        batching: Batching::Packed,
        batch_size: 2,
        max_seq_length: LIMIT,
        window: 4,
        ..LoaderOptions::default()
    };
    let mut alone = loader(&file, options).epochs(3);
    let direct: Vec<Batch> = alone.by_ref().map(Result::unwrap).collect();
    for depth in [0, 1, Prefetch::DEPTH] {
        let mut ahead = Prefetch::new(loader(&file, options).epochs(3), depth).unwrap();
        let batches: Vec<Batch> = ahead.by_ref().map(Result::unwrap).collect();
        assert_eq!(batches, direct);
        assert_eq!(ahead.tally(), alone.tally());
        assert!(ahead.next().is_none());
    }
    // Without end, and dropped while it waits: dropping waits for the thread to end.
    let mut endless = Prefetch::new(loader(&file, options), 1).unwrap();
    assert_eq!(endless.next().unwrap().unwrap(), direct[0]);
    drop(endless);
}

fn chat(question: &str, answer: &str) -> Value {
    json!({ "messages": [{ "role": "user", "content": question }, { "role": "assistant", "content": answer }] })
}

#[test]
fn what_is_cut_or_left_out_is_counted() {
    let long = "a small boat ".repeat(20);
    let lines = [
        chat("Hello", "Hello!"),
        chat("Hello", &long),
        chat(&long, "Hello!"),
        json!({ "messages": [{ "role": "user", "content": "Hello" }] }),
    ];
    let folder = DataFolder::new(&jsonl(lines.clone()));
    let file = folder.open(BadLinePolicy::Refuse);
    let options = LoaderOptions { max_seq_length: LIMIT, shuffle: false, ..LoaderOptions::default() };
    let mut loader = loader(&file, options).epochs(1);
    let batches: Vec<Batch> = loader.by_ref().map(Result::unwrap).collect();
    let encoded = lines.map(|line| encoder().encode(&Record::parse(&line.to_string()).unwrap()).unwrap());
    let lengths = encoded.each_ref().map(|example| example.tokens.len());
    assert!(lengths[0] < LIMIT && lengths[1] > LIMIT && lengths[2] > LIMIT);
    let tally = loader.tally();
    assert_eq!((tally.examples, tally.cut, tally.cut_away, tally.without_targets), (4, 2, 1, 1));
    assert_eq!(tally.tokens, lengths.iter().sum::<usize>() as u64);
    assert_eq!(tally.tokens_lost, (lengths[1] + lengths[2] - 2 * LIMIT) as u64);
    assert_eq!((tally.left_out(), tally.lengths.longest()), (2, lengths[1].max(lengths[2])));
    assert_eq!((batches.len(), batches[0].examples), (1, 2));
    // The long answer fills the limit; of its last token there is no row.
    assert_eq!(batches[0].longest(), LIMIT - 1);
    let counted = batches[0].counted as u64;
    assert_eq!(tally.counted, counted);
    // Rows after the last target are left out.
    let answer = encoded[0].targets();
    assert_eq!(batches[0].starts[1] as usize, lengths[0] - 1);
    assert_eq!(
        counted as usize,
        answer + encoded[1].counted[..LIMIT].iter().filter(|&&counts| counts).count()
    );
}

#[test]
fn a_line_that_cannot_be_encoded_is_named_or_skipped() {
    // The golden template refuses two messages of the user in a row.
    let source = std::fs::read_to_string(super::support::golden("templates/turns.jinja")).unwrap();
    let encoder = || {
        let special = [("bos_token".to_owned(), String::new())];
        let template = metal_candle::text::ChatTemplate::from_source(source.clone(), special).unwrap();
        Arc::new(super::support::encoder_with(template, metal_candle::data::EncoderOptions::default()))
    };
    let user = json!({ "role": "user", "content": "Hello" });
    let lines = [chat("Hello", "Hello!"), json!({ "messages": [user, user] }), chat("Goodbye", "See you.")];
    let folder = DataFolder::new(&format!("\n{}", jsonl(lines)));
    let options = LoaderOptions::default();
    let mut strict = Loader::new(folder.open(BadLinePolicy::Refuse), encoder(), options).unwrap();
    let error = strict.next().unwrap().unwrap_err().to_string();
    assert!(error.contains("train.jsonl, line 3: ") && error.contains("must alternate"), "{error}");
    assert!(strict.next().is_none());
    let mut ahead =
        Prefetch::new(Loader::new(folder.open(BadLinePolicy::Refuse), encoder(), options).unwrap(), 2)
            .unwrap();
    assert_eq!(ahead.next().unwrap().unwrap_err().to_string(), error);
    assert!(ahead.next().is_none());
    let mut lenient = Loader::new(folder.open(BadLinePolicy::Skip), encoder(), options).unwrap();
    assert_eq!(lenient.next().unwrap().unwrap().examples, 2);
    let bad = &lenient.tally().bad;
    assert_eq!((bad.count, bad.first[0].line), (1, 3));
    let only = DataFolder::new(&jsonl([json!({ "messages": [user, user] })]));
    let mut nothing = Loader::new(only.open(BadLinePolicy::Skip), encoder(), options).unwrap();
    let error = nothing.next().unwrap().unwrap_err().to_string();
    assert!(error.contains("1 bad line\n  line 1: ") && error.contains("must alternate"), "{error}");
}

#[test]
fn an_epoch_without_targets_is_an_error_and_no_endless_loop() {
    let folder = DataFolder::new(&jsonl([json!({ "messages": [{ "role": "user", "content": "Hello" }] })]));
    let error =
        loader(&folder.open(BadLinePolicy::Skip), LoaderOptions::default()).next().unwrap().unwrap_err();
    assert!(error.to_string().contains("none of 1 examples"), "{error}");
}

#[test]
fn a_cursor_fits_its_own_data_and_options_only() {
    let texts = texts(&[5; 9]);
    let folder = text_file(&texts);
    let file = folder.open(BadLinePolicy::Refuse);
    let options = LoaderOptions { batch_size: 2, ..LoaderOptions::default() };
    let cursor = loader(&file, options).nth(1).unwrap().unwrap().next;
    assert!(loader(&file, options).at(cursor).is_ok());
    let other = text_file(&texts[1..]);
    let refused = [
        loader(&other.open(BadLinePolicy::Refuse), options).at(cursor),
        loader(&file, LoaderOptions { seed: 1, ..options }).at(cursor),
        loader(&file, LoaderOptions { batch_size: 3, ..options }).at(cursor),
        Loader::new(Arc::clone(&file), Arc::new(tiny_chat(Supervise::All)), options).unwrap().at(cursor),
        loader(&file, options).at(Cursor { window: 9, ..cursor }),
    ];
    for (index, refused) in refused.into_iter().enumerate() {
        let error = refused.map(|_| ()).unwrap_err().to_string();
        assert!(error.contains("cannot go on at the saved place"), "{index}: {error}");
    }
    let beyond = loader(&file, options).at(Cursor { batch: 5, ..cursor }).unwrap().next().unwrap();
    assert!(beyond.unwrap_err().to_string().contains("behind the last batch"));
}

#[test]
fn a_file_that_changes_under_a_loader_is_an_error() {
    let folder = text_file(&texts(&[5; 200]));
    let file = folder.open(BadLinePolicy::Refuse);
    let options = LoaderOptions { batch_size: 8, ..LoaderOptions::default() };
    let mut loader = loader(&file, options);
    assert!(loader.next().unwrap().is_ok());
    std::fs::write(folder.path(), "{\"text\": \"short\"}\n").unwrap();
    let error = loader.find_map(Result::err).unwrap().to_string();
    assert!(error.contains("has changed since it was first read"), "{error}");
}

#[test]
fn options_without_sense_are_errors() {
    let folder = text_file(&texts(&[5]));
    let file = folder.open(BadLinePolicy::Refuse);
    let good = LoaderOptions::default();
    for (options, name) in [
        (LoaderOptions { batch_size: 0, ..good }, "batch_size"),
        (LoaderOptions { max_seq_length: 1, ..good }, "max_seq_length"),
        (LoaderOptions { window: 0, ..good }, "window"),
        (LoaderOptions { batch_size: usize::MAX, ..good }, "batch_size"),
    ] {
        let error = Loader::new(Arc::clone(&file), encoder(), options).map(|_| ()).unwrap_err().to_string();
        assert!(error.starts_with(name), "{error}");
    }
}

#[test]
fn a_survey_counts_what_an_epoch_gives_and_packing_leaves_little_room() {
    // Mostly short, some long.
    let words: Vec<usize> =
        (0..120).map(|number| if number % 8 == 0 { 30 } else { 2 + number % 5 }).collect();
    let texts = texts(&words);
    let folder = text_file(&texts);
    let file = folder.open(BadLinePolicy::Refuse);
    let fill = |batching| {
        let options = LoaderOptions { batching, max_seq_length: LIMIT, ..LoaderOptions::default() };
        let mut told = Vec::new();
        let found = survey(loader(&file, options), &mut |done, all| told.push((done, all))).unwrap();
        assert_eq!(told.last(), Some(&(120, 120)));
        assert!(told.is_sorted());
        let batches: Vec<Batch> = loader(&file, options).epochs(1).map(Result::unwrap).collect();
        assert_eq!(found.batches, batches.len() as u64);
        assert_eq!(found.rows, batches.iter().map(|batch| batch.rows() as u64).sum::<u64>());
        assert_eq!(found.tally.counted, batches.iter().map(|batch| batch.counted as u64).sum::<u64>());
        assert_eq!(found.most_rows, batches.iter().map(Batch::rows).max().unwrap());
        let tokens: usize = expected(&texts).iter().map(Vec::len).sum();
        assert_eq!(found.useful, (tokens - 120) as u64);
        assert_eq!(
            (found.tally.examples, found.tally.lengths.bars().map(|(_, count)| count).sum()),
            (120, 120)
        );
        found.fill()
    };
    assert_eq!(fill(Batching::Concatenated), 1.0);
    let (packed, padded) = (fill(Batching::Packed), fill(Batching::Padded));
    assert!(packed > 0.9 && padded < packed, "{packed} {padded}");
}
