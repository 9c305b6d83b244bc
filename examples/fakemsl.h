/* Enough of the Metal Shading Language, as C++17, to run compute kernels on the CPU: fakeobjc.py takes attributes out of the
 * source, compiles it with this header and adds a runner per kernel. One fibre per thread of a threadgroup when the source
 * has barriers, a plain loop when it has none. No textures, no half, no simdgroup matrices. */
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <ucontext.h>
typedef unsigned int uint;
typedef unsigned char uchar;
typedef unsigned short ushort;
typedef unsigned long ulong;
namespace metal {
template <int N, int... I> struct idx {};
template <class V, class T, int... I> struct swz {
    T d[4];
    operator V() const { return V(d[I]...); }
    swz &operator=(const V &v) { const int at[] = {I...}; for (int i = 0; i < (int)sizeof...(I); i++) d[at[i]] = v[i]; return *this; }
};
template <class T, int N> struct vec;
template <class T> struct alignas(2 * sizeof(T)) vec<T, 2> {
    union { struct { T x, y; }; struct { T r, g; }; T v[2]; swz<vec<T, 2>, T, 1, 0> yx; };
    vec() : v{} {} vec(T a) : v{a, a} {} vec(T a, T b) : v{a, b} {}
    template <class U> explicit vec(const vec<U, 2> &o) : v{T(o.v[0]), T(o.v[1])} {}
    T &operator[](int i) { return v[i]; } const T &operator[](int i) const { return v[i]; }
};
template <class T> struct alignas(4 * sizeof(T)) vec<T, 3> {
    union { struct { T x, y, z; }; struct { T r, g, b; }; T v[3]; swz<vec<T, 2>, T, 0, 1> xy, rg; swz<vec<T, 2>, T, 1, 2> yz; };
    vec() : v{} {} vec(T a) : v{a, a, a} {} vec(T a, T b, T c) : v{a, b, c} {} vec(vec<T, 2> a, T b) : v{a.v[0], a.v[1], b} {}
    template <class U> explicit vec(const vec<U, 3> &o) : v{T(o.v[0]), T(o.v[1]), T(o.v[2])} {}
    T &operator[](int i) { return v[i]; } const T &operator[](int i) const { return v[i]; }
};
template <class T> struct alignas(4 * sizeof(T)) vec<T, 4> {
    union { struct { T x, y, z, w; }; struct { T r, g, b, a; }; T v[4]; swz<vec<T, 2>, T, 0, 1> xy; swz<vec<T, 2>, T, 2, 3> zw; swz<vec<T, 3>, T, 0, 1, 2> xyz, rgb; };
    vec() : v{} {} vec(T p) : v{p, p, p, p} {} vec(T p, T q, T s, T t) : v{p, q, s, t} {} vec(vec<T, 3> p, T q) : v{p.v[0], p.v[1], p.v[2], q} {}
    vec(vec<T, 2> p, vec<T, 2> q) : v{p.v[0], p.v[1], q.v[0], q.v[1]} {}
    template <class U> explicit vec(const vec<U, 4> &o) : v{T(o.v[0]), T(o.v[1]), T(o.v[2]), T(o.v[3])} {}
    T &operator[](int i) { return v[i]; } const T &operator[](int i) const { return v[i]; }
};
#define OP(o) \
template <class T, int N> vec<T, N> operator o(vec<T, N> a, const vec<T, N> &b) { for (int i = 0; i < N; i++) a[i] = a[i] o b[i]; return a; } \
template <class T, int N, class U, class = std::enable_if_t<std::is_arithmetic<U>::value>> vec<T, N> operator o(vec<T, N> a, U b) { for (int i = 0; i < N; i++) a[i] = a[i] o T(b); return a; } \
template <class T, int N, class U, class = std::enable_if_t<std::is_arithmetic<U>::value>> vec<T, N> operator o(U b, vec<T, N> a) { for (int i = 0; i < N; i++) a[i] = T(b) o a[i]; return a; } \
template <class T, int N, class U> vec<T, N> &operator o##=(vec<T, N> &a, const U &b) { return a = a o b; }
OP(+) OP(-) OP(*) OP(/)
#undef OP
template <class T, int N> vec<T, N> operator-(vec<T, N> a) { for (int i = 0; i < N; i++) a[i] = -a[i]; return a; }
template <class T, int N> T dot(const vec<T, N> &a, const vec<T, N> &b) { T s = 0; for (int i = 0; i < N; i++) s += a[i] * b[i]; return s; }
template <class T, int N> T length(const vec<T, N> &a) { return std::sqrt(dot(a, a)); }
template <class T, int N> vec<T, N> normalize(const vec<T, N> &a) { return a / length(a); }
#define TYPES(t, T) using t##2 = vec<T, 2>; using t##3 = vec<T, 3>; using t##4 = vec<T, 4>;
TYPES(float, float) TYPES(int, int) TYPES(uint, uint) TYPES(uchar, uchar) TYPES(ushort, ushort) TYPES(char, signed char) TYPES(long, long) TYPES(ulong, ulong)
typedef float packed_float3[3];
using std::abs; using std::sqrt; using std::sin; using std::cos; using std::tan; using std::exp; using std::log; using std::pow; using std::floor; using std::ceil;
using std::fma; using std::isnan; using std::isinf; using std::round; using std::fmod; using std::tanh; using std::exp2; using std::log2; using std::fabs; using std::trunc;
template <class T, class U> auto min(T a, U b) -> decltype(a + b) { return b < a ? b : a; }
template <class T, class U> auto max(T a, U b) -> decltype(a + b) { return a < b ? b : a; }
template <class T, class U, class V> T clamp(T x, U a, V b) { return x < T(a) ? T(a) : T(b) < x ? T(b) : x; }
template <class T, class U> T mix(T a, T b, U t) { return a + (b - a) * t; }
inline float rsqrt(float x) { return 1 / std::sqrt(x); }
inline float fract(float x) { return x - std::floor(x); }
inline float saturate(float x) { return clamp(x, 0.0f, 1.0f); }
inline float fast_exp(float x) { return std::exp(x); }
inline float sign(float x) { return (x > 0) - (x < 0); }
inline uint popcount(uint x) { return __builtin_popcount(x); }
inline uint as_uint(float x) { uint u; memcpy(&u, &x, 4); return u; }
template <class T> struct atomic { T v; };
typedef atomic<uint> atomic_uint; typedef atomic<int> atomic_int; typedef atomic<float> atomic_float;
enum memory_order { memory_order_relaxed };
template <class T, class U> T atomic_fetch_add_explicit(atomic<T> *a, U n, memory_order) { T o = a->v; a->v += n; return o; }
template <class T, class U> T atomic_fetch_max_explicit(atomic<T> *a, U n, memory_order) { T o = a->v; if (o < T(n)) a->v = n; return o; }
template <class T, class U> T atomic_fetch_min_explicit(atomic<T> *a, U n, memory_order) { T o = a->v; if (T(n) < o) a->v = n; return o; }
template <class T> T atomic_load_explicit(const atomic<T> *a, memory_order) { return a->v; }
template <class T, class U> void atomic_store_explicit(atomic<T> *a, U n, memory_order) { a->v = n; }
enum class mem_flags { mem_none = 0, mem_device = 1, mem_threadgroup = 2, mem_texture = 4 };
constexpr mem_flags operator|(mem_flags a, mem_flags b) { return mem_flags(int(a) | int(b)); }
}
#include "fakeray.h"
/* what a runner knows of its threads */
struct FakeLaunch { uint32_t grid[3], group[3], groups[3]; void *buffers[31]; uint64_t memory[31]; const void *constants[64]; };
struct FakeThread { uint32_t at[3], in_group[3], group_at[3], size[3], index; };
static ucontext_t fake_main, *fake_fibre;
static int fake_at, fake_total;
static float fake_lanes[1024];
static FakeThread fake_now;
static FakeThread *fake_threads;
static inline void fake_barrier() { int me = fake_at; swapcontext(&fake_fibre[me], &fake_main); fake_now = fake_threads[me]; }
#define threadgroup_barrier(...) fake_barrier()
#define simdgroup_barrier(...) fake_barrier()
static inline float fake_simd(float x, int how)
{
    uint me = fake_now.index, first = me & ~31u, last = std::min<uint>(first + 32, fake_total);
    fake_lanes[me] = x;
    fake_barrier();
    float r = fake_lanes[first];
    for (uint i = first + 1; i < last; i++) r = how == 0 ? r + fake_lanes[i] : how == 1 ? std::max(r, fake_lanes[i]) : std::min(r, fake_lanes[i]);
    fake_barrier();
    return r;
}
#define simd_sum(x) fake_simd(x, 0)
#define simd_max(x) fake_simd(x, 1)
#define simd_min(x) fake_simd(x, 2)
#define kernel
#define device
#define thread
#define threadgroup
#define constant
#define vertex
#define fragment
using namespace metal;
template <class T> T fake_pick(const uint32_t *v);
template <> inline uint fake_pick<uint>(const uint32_t *v) { return v[0]; }
template <> inline int fake_pick<int>(const uint32_t *v) { return (int)v[0]; }
template <> inline ushort fake_pick<ushort>(const uint32_t *v) { return (ushort)v[0]; }
template <> inline uint2 fake_pick<uint2>(const uint32_t *v) { return uint2(v[0], v[1]); }
template <> inline uint3 fake_pick<uint3>(const uint32_t *v) { return uint3(v[0], v[1], v[2]); }
template <> inline ushort2 fake_pick<ushort2>(const uint32_t *v) { return ushort2(v[0], v[1]); }
/* run body(memory) for every thread of the grid; barriers: whether it may stop at one */
static inline bool fake_unbound(const char *name, const char *what)       /* a null pointer here would end the process without a word */
{
    if (what) fprintf(stderr, "fakemetal: kernel %s did not run: nothing is bound to its [[%s]]\n", name, what);
    return what != 0;
}
template <class F> static void fake_run(const FakeLaunch *l, bool barriers, F body)
{
    static const size_t stack = 65536;
    char *memory[31] = {0}, *stacks = 0;
    uint32_t most = l->group[0] * l->group[1] * l->group[2];
    for (int i = 0; i < 31; i++) if (l->memory[i]) memory[i] = new char[l->memory[i] + 16]();
    FakeThread *threads = fake_threads = new FakeThread[most];
    if (barriers) stacks = new char[stack * most], fake_fibre = new ucontext_t[most];
    static void (*enter)(); static const F *now; static char **now_memory; static bool *now_done;
    bool *done = new bool[most];
    now = &body; now_memory = memory; now_done = done;
    enter = [] { fake_now = fake_threads[fake_at]; (*now)(now_memory); now_done[fake_at] = true; swapcontext(&fake_fibre[fake_at], &fake_main); };
    for (uint32_t gz = 0; gz < l->groups[2]; gz++) for (uint32_t gy = 0; gy < l->groups[1]; gy++) for (uint32_t gx = 0; gx < l->groups[0]; gx++) {
        uint32_t g[3] = {gx, gy, gz}, size[3], n = 0;
        for (int i = 0; i < 3; i++) size[i] = std::min(l->group[i], l->grid[i] - g[i] * l->group[i]);
        for (uint32_t z = 0; z < size[2]; z++) for (uint32_t y = 0; y < size[1]; y++) for (uint32_t x = 0; x < size[0]; x++) {
            FakeThread &t = threads[n];
            uint32_t in[3] = {x, y, z};
            for (int i = 0; i < 3; i++) t.at[i] = g[i] * l->group[i] + in[i], t.in_group[i] = in[i], t.group_at[i] = g[i], t.size[i] = size[i];
            t.index = n++;
        }
        fake_total = n;
        if (!barriers) { for (uint32_t i = 0; i < n; i++) { fake_now = threads[i]; body(memory); } continue; }
        for (uint32_t i = 0; i < n; i++) {
            done[i] = false;
            getcontext(&fake_fibre[i]);
            fake_fibre[i].uc_stack.ss_sp = stacks + stack * i, fake_fibre[i].uc_stack.ss_size = stack, fake_fibre[i].uc_link = &fake_main;
            makecontext(&fake_fibre[i], enter, 0);
        }
        for (bool any = true; any;) { any = false; for (uint32_t i = 0; i < n; i++) if (!done[i]) { fake_at = i; swapcontext(&fake_main, &fake_fibre[i]); any |= !done[i]; } }
    }
    for (int i = 0; i < 31; i++) delete[] memory[i];
    delete[] threads; delete[] stacks; delete[] done;
    if (barriers) delete[] fake_fibre;
}
