// Attention over a paged KV cache, f16 or 8 bits with scales, on RDNA 3.5: `decode` takes every token on its own, `prefill`
// tiles of consecutive tokens of a sequence.
//
// A model is a struct of constants:
//   D, HEADS, KV_HEADS, WINDOW, SCALE, Q8    D is a multiple of 16 up to 256, of 32 where Q8. WINDOW is how many positions a
//                                            query sees, itself included; 0 means all
//   SPLITS                                   parts of a context that decoding takes at a time: the grid's z
//   TABLE                                    entries of a block table that are copied to shared memory at a time, each
//                                            clamped to the pool's blocks; 0: they are used from where they lie
//   AHEAD                                    whether the next block's keys and values are under way while one is multiplied
//
// An epilogue is `store(row, head, tile)`, called by all lanes of a wavefront: tile is D f32 values in shared memory, 16-byte
// aligned, that the wavefront alone may read and overwrite during the call.

namespace attention {

struct Args {
    const float* q;      // [T, HEADS * D], rotated
    const char* keys;    // pools of one layer: a KV head of a block is block * block_stride + kv_head * Kv<C>::HEAD, and there
    const char* values;  //   lie its 16 positions of D dims. Q8: behind them the positions' f16 scales, one for each 32 dims
    u64 block_stride;    // bytes; a multiple of 16
    const u32* tables;   // [S][table_stride] block numbers; only entries of blocks that hold a visible position are read
    const u32* sequences;  // [T]
    const u32* positions;  // [T]
    const u32* counts;     // {T, S, R, tiles}; a grid may be larger
    const u32* tiles;      // [counts[3]][4]: first row, rows (1 ..= Prefill::BM), sequence, position of the first row
    float* workspace;      // decode only
    u32* tickets;          // decode only; zero before the first launch, and again after each
    u32 table_stride;
    u32 blocks;  // of a pool
};

// Bytes from one position to the next, and from one KV head to the next.
template <class C>
struct Kv {
    static constexpr int ROW = C::Q8 ? C::D : C::D * 2, SCALES = C::Q8 ? C::D / 32 : 0, HEAD = 16 * (ROW + 2 * SCALES);
    static_assert(C::D % 16 == 0 && C::D <= 256 && C::HEADS % C::KV_HEADS == 0, "a shape that these kernels cover");
    static_assert(!C::Q8 || C::D % 32 == 0, "a scale for each 32 dims");
};

// Signed bytes as f16, exactly: 1024 + 128 + byte has it in its lowest bits.
DEVICE void expand(u32 bytes, u32& low, u32& high) {
    const u32 moved = bytes ^ 0x80808080u;
    low = half2_sub(permute(moved, 0x64646464u, 0x4140), 0x64806480u);
    high = half2_sub(permute(moved, 0x64646464u, 0x4342), 0x64806480u);
}
DEVICE u32 low_halves(u32 a, u32 b) { return permute(a, b, 0x5410); }
DEVICE u32 high_halves(u32 a, u32 b) { return permute(a, b, 0x7632); }

// Where a block lies in a pool. The number is what a table says; it is believed where nothing says otherwise.
DEVICE u32 clamped(u32 block, u32 blocks) { return block < blocks ? block : blocks - 1; }

// The slots of a block that hold visible positions. Nothing else of it is read: nobody may have written it, and a NaN that lies
// there would survive a weight of zero. What is read for a slot that nobody sees is the nearest one's.
struct Slots {
    u32 first, last;
};
// Of the block whose first slot is position `base`, where those from `start` to `end` are visible.
template <class C>
DEVICE Slots visible_slots(u32 base, u32 start, u32 end) {
    return Slots{C::WINDOW && start > base ? start - base : 0, end - base < 15 ? end - base : 15};
}
DEVICE u32 nearest(Slots seen, u32 slot) {
    const u32 most = slot < seen.last ? slot : seen.last;
    return most > seen.first ? most : seen.first;
}

// Scores are kept in powers of two: the scale takes log2(e) with it.
template <class C>
DEVICE float query_scale() {
    return C::SCALE * 1.4426950408889634f;
}
// A running maximum moves only when a score exceeds it by more than this; until then exponents reach 2^8, which f16 holds
// with the same relative error. Each row decides for itself, so a result depends on no neighbour.
constexpr float SLACK = 8.0f;
// Less than any score yet finite: differences of two such are 0, not NaN.
constexpr float LOWEST = -1e30f;
DEVICE float masked() { return __uint_as_float(0xff800000u); }
DEVICE bool any_lane(bool v) { return __builtin_amdgcn_ballot_w32(v) != 0; }

}  // namespace attention
