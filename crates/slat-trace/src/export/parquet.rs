//! Parquet files.

use std::io::{self, Write};
use std::sync::Arc;

use parquet::basic::{Compression, ZstdLevel};
use parquet::data_type::{BoolType, ByteArray, ByteArrayType, DataType, Int32Type, Int64Type};
use parquet::errors::{ParquetError, Result};
use parquet::file::properties::WriterProperties;
use parquet::file::writer::{SerializedFileWriter, SerializedRowGroupWriter};
use parquet::schema::parser::parse_message_type;

use super::{Part, Row};
use crate::event::Batch;

/// The columns, as those of the CSV; addresses and values are unsigned.
const SCHEMA: &str = "message slat {
    required int64 number (INTEGER(64, false));
    required int32 vcpu (INTEGER(8, false));
    required byte_array what (STRING);
    optional int64 va (INTEGER(64, false));
    optional int64 gpa (INTEGER(64, false));
    optional int32 len (INTEGER(16, false));
    optional boolean user;
    optional int64 value (INTEGER(64, false));
}";

/// Rows that are kept before they are written: about 50 MB.
const GROUP: usize = 1 << 20;

/// A column that may have gaps: the values that are there, and for each row whether one is.
struct Optional<T> {
    values: Vec<T>,
    there: Vec<i16>,
}

impl<T> Optional<T> {
    fn new() -> Self {
        Self { values: Vec::new(), there: Vec::new() }
    }

    fn push(&mut self, value: Option<T>) {
        self.there.push(value.is_some().into());
        self.values.extend(value);
    }
}

/// The columns of the rows that are not yet written.
struct Columns {
    number: Vec<i64>,
    vcpu: Vec<i32>,
    what: Vec<ByteArray>,
    va: Optional<i64>,
    gpa: Optional<i64>,
    len: Optional<i32>,
    user: Optional<bool>,
    value: Optional<i64>,
}

impl Columns {
    fn new() -> Self {
        Self {
            number: Vec::new(),
            vcpu: Vec::new(),
            what: Vec::new(),
            va: Optional::new(),
            gpa: Optional::new(),
            len: Optional::new(),
            user: Optional::new(),
            value: Optional::new(),
        }
    }

    fn push(&mut self, row: Row) {
        // Unsigned numbers are stored as signed ones of the same bits.
        let word = |value: Option<u64>| value.map(|value| value as i64);
        self.number.push(row.number as i64);
        self.vcpu.push(row.vcpu.into());
        self.what.push(match row.what {
            std::borrow::Cow::Borrowed(text) => ByteArray::from(text),
            std::borrow::Cow::Owned(text) => ByteArray::from(text.into_bytes()),
        });
        self.va.push(word(row.va));
        self.gpa.push(word(row.gpa));
        self.len.push(row.len.map(i32::from));
        self.user.push(row.user);
        self.value.push(word(row.value));
    }
}

/// Writes a stream as a Parquet file, batch by batch: one row an access and on request one an event,
/// with the columns `number`, `vcpu`, `what`, `va`, `gpa`, `len`, `user`, `value`.
pub struct ParquetExporter<W: Write + Send> {
    file: SerializedFileWriter<W>,
    columns: Columns,
    part: Part,
    events: bool,
}

fn plain(error: ParquetError) -> io::Error {
    io::Error::other(error)
}

impl<W: Write + Send> ParquetExporter<W> {
    /// An exporter of `part` of a stream; `events` says whether events get rows too.
    ///
    /// # Errors
    ///
    /// Where `out` cannot be written.
    pub fn new(out: W, events: bool, part: Part) -> io::Result<Self> {
        let begin = || -> Result<_> {
            let schema = Arc::new(parse_message_type(SCHEMA)?);
            let level = ZstdLevel::try_new(3)?;
            let properties =
                WriterProperties::builder().set_compression(Compression::ZSTD(level)).build();
            SerializedFileWriter::new(out, schema, Arc::new(properties))
        };
        let file = begin().map_err(plain)?;
        Ok(Self { file, columns: Columns::new(), part, events })
    }

    /// Writes what of a batch is asked for; false when nothing after it can be.
    ///
    /// # Errors
    ///
    /// Where the output cannot be written.
    pub fn push(&mut self, batch: &Batch) -> io::Result<bool> {
        let columns = &mut self.columns;
        let more = self.part.rows(batch, self.events, |row| {
            columns.push(row);
            io::Result::Ok(())
        })?;
        if self.columns.number.len() >= GROUP {
            self.write_group().map_err(plain)?;
        }
        Ok(more)
    }

    fn write_group(&mut self) -> Result<()> {
        let Columns { number, vcpu, what, va, gpa, len, user, value } =
            std::mem::replace(&mut self.columns, Columns::new());
        let mut group = self.file.next_row_group()?;
        column::<Int64Type, _>(&mut group, &number, None)?;
        column::<Int32Type, _>(&mut group, &vcpu, None)?;
        column::<ByteArrayType, _>(&mut group, &what, None)?;
        column::<Int64Type, _>(&mut group, &va.values, Some(&va.there))?;
        column::<Int64Type, _>(&mut group, &gpa.values, Some(&gpa.there))?;
        column::<Int32Type, _>(&mut group, &len.values, Some(&len.there))?;
        column::<BoolType, _>(&mut group, &user.values, Some(&user.there))?;
        column::<Int64Type, _>(&mut group, &value.values, Some(&value.there))?;
        group.close().map(drop)
    }

    /// Writes what is left and the end of the file, without which it cannot be read, and returns
    /// the output.
    ///
    /// # Errors
    ///
    /// Where the output cannot be written.
    pub fn finish(mut self) -> io::Result<W> {
        if !self.columns.number.is_empty() {
            self.write_group().map_err(plain)?;
        }
        let mut out = self.file.into_inner().map_err(plain)?;
        out.flush()?;
        Ok(out)
    }
}

fn column<T: DataType, W: Write + Send>(
    group: &mut SerializedRowGroupWriter<'_, W>,
    values: &[T::T],
    there: Option<&[i16]>,
) -> Result<()> {
    let missing = || ParquetError::General("fewer columns in the schema than in the rows".into());
    let mut column = group.next_column()?.ok_or_else(missing)?;
    column.typed::<T>().write_batch(values, there, None)?;
    column.close()
}

#[cfg(test)]
mod tests {
    use parquet::file::reader::{FileReader, SerializedFileReader};
    use parquet::record::RowAccessor;

    use super::*;
    use crate::event::{Access, Event, Kind, Root};

    #[test]
    fn what_is_written_reads_back_with_its_gaps_and_types() {
        let mut batch = Batch::default();
        batch.event(0, Event::Root { root: Root::Cr3, value: u64::MAX });
        let high = 0xffff_8000_0000_1000;
        batch.accesses.push(Access::new(Kind::Store, high, 8).with_user(false).with_frame(7));
        batch.accesses.push(Access::new(Kind::Load, 0x7000, 4).on(3));
        let part = Part::new(0, 0, u64::MAX);
        let mut exporter = ParquetExporter::new(Vec::new(), true, part).unwrap();
        assert!(exporter.push(&batch).unwrap());
        let file = exporter.finish().unwrap();

        let place = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(place.path(), file).unwrap();
        let reader = SerializedFileReader::try_from(place.path()).unwrap();
        let rows: Vec<_> =
            reader.get_row_iter(None).unwrap().map(std::result::Result::unwrap).collect();
        assert_eq!(rows.len(), 3);
        let what = |row: usize| rows[row].get_string(2).unwrap().as_str();
        assert_eq!([what(0), what(1), what(2)], ["root cr3", "store", "load"]);
        assert_eq!(rows[0].get_ulong(7).unwrap(), u64::MAX);
        assert!(rows[0].get_ulong(3).is_err(), "an event without an address");
        assert_eq!(rows[1].get_ulong(3).unwrap(), high);
        assert_eq!(rows[1].get_ulong(4).unwrap(), 0x7000);
        assert!(!rows[1].get_bool(6).unwrap());
        assert!(rows[2].get_ulong(4).is_err(), "a frame that is not known");
        assert_eq!((rows[2].get_ulong(0).unwrap(), rows[2].get_ubyte(1).unwrap()), (1, 3));
        assert_eq!(rows[2].get_ushort(5).unwrap(), 4);
    }

    #[test]
    fn more_than_one_group_is_written() {
        let mut batch = Batch::default();
        batch.accesses.resize(GROUP / 2 + 1, Access::new(Kind::Load, 0x1000, 8));
        let part = Part::new(0, 1, u64::MAX);
        let mut exporter = ParquetExporter::new(Vec::new(), false, part).unwrap();
        for _ in 0..3 {
            assert!(exporter.push(&batch).unwrap());
        }
        let place = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(place.path(), exporter.finish().unwrap()).unwrap();
        let reader = SerializedFileReader::try_from(place.path()).unwrap();
        assert_eq!(reader.num_row_groups(), 2);
        let rows: i64 = reader.metadata().row_groups().iter().map(|group| group.num_rows()).sum();
        assert_eq!(rows as usize, 3 * batch.accesses.len() - 1);
    }
}
