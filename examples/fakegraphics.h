/* The graphics part of fakeobjc.c: textures, render passes, heaps, indirect commands, archives, capture, ray tracing, MPS.
 *
 * Textures and heaps are real memory; clears, copies, mipmaps, loads from files, acceleration structures and a matrix product
 * really happen. Draws are RECORDED, NOT RASTERISED: fake_recorded() has each send to an encoder, with its arguments, and the
 * count of draws. sRGB is stored as if it were linear. */

/* ---- the record of what was encoded ---- */
static char *record_text;
static size_t record_n, record_cap;
static int recording;
static pthread_mutex_t record_m = PTHREAD_MUTEX_INITIALIZER;      /* not the big lock: selectors are made under it */
static u64 drawn;
void fake_record(int on) { pthread_mutex_lock(&record_m); recording = on; record_n = 0; if (record_text) record_text[0] = 0; drawn = 0; pthread_mutex_unlock(&record_m); }
const char *fake_recorded(void) { return record_text ? record_text : ""; }
u64 fake_drawn(void) { return drawn; }
void fake_record_class(const char *name, int how) { Cls *c = objc_getClass(name); if (c) c->records = how; }
static void say(const char *f, ...)
{
    char b[256];
    va_list l;
    va_start(l, f);
    int n = vsnprintf(b, sizeof b, f, l);
    va_end(l);
    if (n > (int)sizeof b - 1) n = sizeof b - 1;
    if (record_n + n + 2 > record_cap) { if (record_cap > 1 << 23) return; record_text = realloc(record_text, record_cap = 2 * record_cap + 65536); }
    memcpy(record_text + record_n, b, n + 1);
    record_n += n;
}
static void say_object(id o)
{
    if (!o) { say(" nil"); return; }
    Cls *c = object_getClass(o);
    if (c->meta || !strcmp(c->name, "NSObject")) { say(" class"); return; }     /* or a protocol: no properties */
    if (inherits(c, objc_getClass("NSString"))) { say(" \"%s\"", text(o)); return; }
    Prop *p = plain(o) ? prop(o, S("label"), 0) : 0;
    const char *name = !strncmp(c->name, "AGX", 3) ? c->name + 3 : c->name;
    if (p && p->object && p->v.o) say(" %s:%s", name, text(p->v.o)); else say(" %s", name);
}
static int letters(const char *t, char *out)        /* the scalars of a struct, one letter each */
{
    int n = 0;
    for (const char *at = t; *at && n < 15; at++) {
        if (*at == '{') { while (at[1] && *at != '=') at++; continue; }
        if (strchr("QqdfCIiSs", *at)) out[n++] = *at;
    }
    out[n] = 0;
    return n;
}
typedef struct { u64 *ints, *stack; double *floats; int ni, nf, ns, most; } Args;
static u64 next_word(Args *a) { return a->ni < a->most ? a->ints[a->ni++] : a->stack[a->ns++]; }
static double next_double(Args *a) { double d; if (a->nf < 8) return a->floats[2 * a->nf++]; memcpy(&d, &a->stack[a->ns++], 8); return d; }
static void say_struct(Args *a, const char *t)
{
    char l[16], sep = ' ';
    int n = letters(t, l), small = n == 2 || l[0] == 'C' || n == 1;
    u64 one[16];
    const u64 *from = one;
    if (l[0] == 'f' || l[0] == 'C') { double d = 0; if (l[0] == 'f') { d = next_double(a); memcpy(one, &d, 8); } else one[0] = next_word(a);
        for (int i = 0; i < n; i++, sep = ',') { float f; memcpy(&f, (char *)one + 4 * i, 4); if (l[0] == 'f') say("%c%g", sep, f); else say("%c%d", sep, ((unsigned char *)one)[i]); }
        return; }
#if defined(__x86_64__)
    if (!small) { from = a->stack + a->ns; a->ns += n; }
    else if (l[0] == 'd') for (int i = 0; i < n; i++) { double d = next_double(a); memcpy(&one[i], &d, 8); }
    else if (a->ni + n <= a->most) for (int i = 0; i < n; i++) one[i] = a->ints[a->ni++];
    else { from = a->stack + a->ns; a->ns += n; }
#else
    if (l[0] == 'd' && n <= 4) for (int i = 0; i < n; i++) { double d = next_double(a); memcpy(&one[i], &d, 8); }
    else if (!small) from = (u64 *)next_word(a);
    else for (int i = 0; i < n; i++) one[i] = next_word(a);
#endif
    for (int i = 0; i < n; i++, sep = ',') { double d; memcpy(&d, &from[i], 8); if (l[i] == 'd') say("%c%g", sep, d); else say("%c%lu", sep, (unsigned long)from[i]); }
}
static void record(id self, Method *m, id *slot, int stret)
{
    const char *sel = m->sel, *t = m->types;
    if (self->isa->records == 2 && !strncmp(sel, "draw", 4)) {
        __atomic_add_fetch(&drawn, 1, __ATOMIC_RELAXED);
        if (!((Bindings *)self->p)->pipeline) offence("%s without a render pipeline", sel);
    }
    if (!recording || !strncmp(sel, "conformsTo", 10) || !strncmp(sel, "isKindOf", 8) || !strncmp(sel, "responds", 8)) return;
    Args a = { (u64 *)slot - stret, 0, 0, 2 + stret, 0, 0, 6 };
#if defined(__x86_64__)
    a.floats = (double *)(a.ints + 8), a.stack = a.ints + 0xD0 / 8 + 2;
#else
    a.floats = (double *)(a.ints - 16), a.stack = a.ints + 12, a.most = 8;
#endif
    pthread_mutex_lock(&record_m);
    say("%s %s", !strncmp(self->isa->name, "AGX", 3) ? self->isa->name + 3 : self->isa->name, sel);
    int i = type_end(t, 0), k = 0;
    for (;; k++) {
        while (t[i] >= '0' && t[i] <= '9') i++;
        if (!t[i]) break;
        const char *one = t + i;
        char part[200];
        int e = type_end(t, i);
        snprintf(part, sizeof part, "%.*s", e - i, one);
        i = e;
        if (k < 2) continue;
        char *p = part;
        while (strchr("rnNoORV", *p)) p++;
        if (*p == '{') say_struct(&a, p);
        else if (*p == 'd') say(" %g", next_double(&a));
        else if (*p == 'f') { double d = next_double(&a); float f; memcpy(&f, &d, 4); say(" %g", f); }
        else {
            u64 w = next_word(&a);
            if (*p == '@' && p[1] != '?') say_object((id)w);
            else if (*p == '@') say(" block");
            else if (*p == '^' || *p == '*' || *p == ':' || *p == '#') say(w ? " *" : " nil");
            else if (*p == 'I') say(" %u", (unsigned)w);
            else if (*p == 'i') say(" %d", (int)w);
            else if (strchr("cCB", *p)) say(" %u", (unsigned)(w & 255));
            else if (*p == 'q') say(" %ld", (long)w);
            else say(" %lu", (unsigned long)w);
        }
    }
    say("\n");
    pthread_mutex_unlock(&record_m);
}

/* ---- textures: a = bytes, p = memory, b = options for b_contents, y = owner of the memory ---- */
static struct { u64 bytes, w, h; } formats[1024];
void fake_format(u64 v, u64 bytes, u64 w, u64 h) { if (v < 1024) formats[v].bytes = bytes, formats[v].w = w, formats[v].h = h; }
static u64 at_least(u64 v) { return v ? v : 1; }
static u64 dim(id t, const char *name, u64 level) { u64 v = at_least(get_int(t, name)) >> level; return at_least(v); }
static u64 row_of(u64 f, u64 w) { return (w + formats[f].w - 1) / formats[f].w * formats[f].bytes; }
static u64 plane_of(u64 f, u64 w, u64 h) { return row_of(f, w) * ((h + formats[f].h - 1) / formats[f].h); }
static u64 level_bytes(id t, u64 level)
{
    u64 f = get_int(t, "pixelFormat");
    return plane_of(f, dim(t, "width", level), dim(t, "height", level)) * dim(t, "depth", level) * at_least(get_int(t, "sampleCount"));
}
static u64 slices_of(id t) { u64 k = get_int(t, "textureType"); return at_least(get_int(t, "arrayLength")) * (k == 5 || k == 6 ? 6 : 1); }
static u64 slice_bytes(id t) { u64 n = 0; for (u64 i = 0; i < at_least(get_int(t, "mipmapLevelCount")); i++) n += level_bytes(t, i); return n; }
static char *level_at(id t, u64 slice, u64 level)
{
    if (slice >= slices_of(t) || level >= at_least(get_int(t, "mipmapLevelCount"))) { offence("slice %lu, level %lu are not in the texture", slice, level); return 0; }
    char *p = (char *)t->p + slice * slice_bytes(t);
    for (u64 i = 0; i < level; i++) p += level_bytes(t, i);
    return p;
}
static id texture(id parent, SEL s, id d, char *memory)
{
    u64 f = get_int(d, "pixelFormat"), samples = at_least(get_int(d, "sampleCount")), kind = get_int(d, "textureType");
    if (f >= 1024 || !formats[f].bytes) { offence("texture of pixel format %lu", (unsigned long)f); return 0; }
    if (!get_int(d, "width") || !at_least(get_int(d, "height"))) { offence("texture without a width"); return 0; }
    if ((samples > 1) != (kind == 4 || kind == 8)) offence("sampleCount %lu in a texture of type %lu", (unsigned long)samples, (unsigned long)kind);
    if (get_int(d, "depth") > 1 && kind != 7) offence("depth in a texture that is not 3D");
    if (formats[f].w > 1 && get_int(d, "usage") & 6) offence("a compressed texture is only read");
    if (kind < 2 && get_int(d, "height") > 1) offence("height in a 1D texture");
    if ((kind < 2 || samples > 1) && get_int(d, "mipmapLevelCount") > 1) offence("mipmap levels in a 1D or multisampled texture");
    if ((kind == 5 || kind == 6) && get_int(d, "width") != get_int(d, "height")) offence("a cube's width is its height");
    if (get_int(d, "arrayLength") > 1 && kind != 1 && kind != 3 && kind != 6 && kind != 8) offence("layers in a texture that is no array");
    id t = new_child(parent, class_for(method_now(parent, s)->result), d);
    t->a = slice_bytes(t) * slices_of(t);
    t->p = memory ? memory : page(t->a ? t->a : 1);
    t->t[0] = !memory;
    t->b = get_int(t, "storageMode") << 4;
    for (int i = 0; i < 6; i++) { static const char *names[] = { "height", "depth", "mipmapLevelCount", "sampleCount", "arrayLength", 0 }; if (names[i]) put_int(t, names[i], at_least(get_int(t, names[i]))); }
    if (!memory) __atomic_add_fetch(&allocated, t->a, __ATOMIC_RELAXED);
    return t;
}
static id tx_new(id o, SEL s, id d) { return texture(o, s, d, 0); }
static void tx_free(id t)
{
    if (t->t[0]) free(t->p), __atomic_sub_fetch(&allocated, t->a, __ATOMIC_RELAXED);
    if (t->x) { t->x->b -= t->a; objc_release(t->x); }
    objc_release(t->y);
}
static id tx_view(id t, SEL s, u64 format)
{
    id v = make(t->isa);
    (void)s;
    copy_props(t, v);
    put_int(v, "pixelFormat", format), put_object(v, "parentTexture", t);
    v->p = t->p, v->a = t->a, v->b = t->b, v->y = objc_retain(t);
    return v;
}
static id tx_view_of(id t, SEL s, u64 format, u64 kind, T_QQ levels, T_QQ slices)
{
    id v = tx_view(t, s, format);
    put_int(v, "textureType", kind), put_int(v, "parentRelativeLevel", levels.v[0]), put_int(v, "parentRelativeSlice", slices.v[0]);
    put_int(v, "arrayLength", slices.v[1]);
    v->p = level_at(t, slices.v[0], 0);
    return v;
}
static int region_ok(id t, u64 level, const u64 *o, const u64 *z, const char *what)
{
    int ok = z[0] && z[1] && z[2] && o[0] + z[0] <= dim(t, "width", level) && o[1] + z[1] <= dim(t, "height", level) && o[2] + z[2] <= dim(t, "depth", level);
    if (!ok) offence("%s: region %lu,%lu,%lu + %lu,%lu,%lu is not in level %lu", what, o[0], o[1], o[2], z[0], z[1], z[2], level);
    return ok;
}
/* rows of blocks between a texture's level and memory */
static void move(id t, char *level_start, u64 level, const u64 *o, const u64 *z, char *other, u64 row, u64 plane, int out, u64 option)
{
    u64 f = get_int(t, "pixelFormat"), w = dim(t, "width", level), h = dim(t, "height", level), whole = row_of(f, w), bw = formats[f].w, bh = formats[f].h;
    if (option) {       /* one part of a depth and stencil format */
        u64 each = formats[f].bytes, n = option == 1 ? 4 : 1, skip = option == 1 ? 0 : each == 8 ? 4 : 3;
        for (u64 y = 0; y < z[1]; y++) for (u64 x = 0; x < z[0]; x++) {
            char *mine = level_start + (o[1] + y) * whole + (o[0] + x) * each + skip, *theirs = other + y * row + x * n;
            memcpy(out ? theirs : mine, out ? mine : theirs, n);
        }
        return;
    }
    for (u64 k = 0; k < z[2]; k++) for (u64 y = 0; y < (z[1] + bh - 1) / bh; y++) {
        char *in = level_start + (o[2] + k) * plane_of(f, w, h) + (o[1] / bh + y) * whole + o[0] / bw * formats[f].bytes, *there = other + k * plane + y * row;
        if (out) memcpy(there, in, row_of(f, z[0])); else memcpy(in, there, row_of(f, z[0]));
    }
}
static int cpu_ok(id t, const char *what) { if ((t->b >> 4 & 15) >= 2) { offence("%s of a private texture", what); return 0; } return 1; }
static void tx_get(id t, SEL s, char *out, u64 row, u64 plane, T_Q6 r, u64 level, u64 slice)
{
    char *p = level_at(t, slice, level);
    (void)s;
    if (p && cpu_ok(t, "getBytes") && region_ok(t, level, r.v, r.v + 3, "getBytes")) move(t, p, level, r.v, r.v + 3, out, row, plane, 1, 0);
}
static void tx_get_2d(id t, SEL s, char *out, u64 row, T_Q6 r, u64 level) { tx_get(t, s, out, row, 0, r, level, 0); }
static void tx_put(id t, SEL s, T_Q6 r, u64 level, u64 slice, char *in, u64 row, u64 plane)
{
    char *p = level_at(t, slice, level);
    (void)s;
    if (p && cpu_ok(t, "replaceRegion") && region_ok(t, level, r.v, r.v + 3, "replaceRegion")) move(t, p, level, r.v, r.v + 3, in, row, plane, 0, 0);
}
static void tx_put_2d(id t, SEL s, T_Q6 r, u64 level, char *in, u64 row) { tx_put(t, s, r, level, 0, in, row, 0); }
static char sample_count(id o, SEL s, u64 n) { (void)o, (void)s; return n == 1 || n == 2 || n == 4 || n == 8; }

/* blits that touch textures */
static Cmd *call(id e, void (*f)(Cmd *), id one, id two) { Cmd *c = work(e, CALL); c->call = f, c->one = objc_retain(one), c->two = objc_retain(two); return c; }
static void part_ok(u64 f, u64 option) { if ((f == 255 || f == 260) != (option == 1 || option == 2)) offence("pixel format %lu copied with option %lu", (unsigned long)f, (unsigned long)option); }
static void do_to_buffer(Cmd *c) { char *p = level_at(c->one, c->w[0], c->w[1]); if (p) move(c->one, p, c->w[1], c->w + 2, c->w + 5, (char *)c->two->p + c->w[8], c->w[9], c->w[10], 1, c->w[11]); }
static void to_buffer(id e, id t, u64 slice, u64 level, T_QQQ o, T_QQQ z, id b, u64 at, u64 row, u64 plane, u64 option)
{
    u64 f = get_int(t, "pixelFormat"), rows = (z.v[1] + formats[f].h - 1) / formats[f].h;
    if (!level_at(t, slice, level) || !region_ok(t, level, o.v, z.v, "copyFromTexture") || !inside(b, at, (z.v[2] - 1) * plane + row * (rows - 1) + (option ? (option == 1 ? 4 : 1) * z.v[0] : row_of(f, z.v[0])), "copy to")) return;
    part_ok(f, option);
    Cmd *c = call(e, do_to_buffer, t, b);
    u64 w[] = { slice, level, o.v[0], o.v[1], o.v[2], z.v[0], z.v[1], z.v[2], at, row, plane, option };
    memcpy(c->w, w, sizeof w);
}
static void tb(id e, SEL s, id t, u64 slice, u64 level, T_QQQ o, T_QQQ z, id b, u64 at, u64 row, u64 plane) { (void)s; to_buffer(e, t, slice, level, o, z, b, at, row, plane, 0); }
static void tb_option(id e, SEL s, id t, u64 slice, u64 level, T_QQQ o, T_QQQ z, id b, u64 at, u64 row, u64 plane, u64 option) { (void)s; to_buffer(e, t, slice, level, o, z, b, at, row, plane, option); }
static void do_from_buffer(Cmd *c) { char *p = level_at(c->one, c->w[0], c->w[1]); if (p) move(c->one, p, c->w[1], c->w + 2, c->w + 5, (char *)c->two->p + c->w[8], c->w[9], c->w[10], 0, c->w[11]); }
static void bt_option(id e, SEL s, id b, u64 at, u64 row, u64 plane, T_QQQ z, id t, u64 slice, u64 level, T_QQQ o, u64 option)
{
    u64 f = get_int(t, "pixelFormat"), rows = (z.v[1] + formats[f].h - 1) / formats[f].h;
    (void)s;
    if (!level_at(t, slice, level) || !region_ok(t, level, o.v, z.v, "copyFromBuffer") || !inside(b, at, (z.v[2] - 1) * plane + row * (rows - 1) + (option ? (option == 1 ? 4 : 1) * z.v[0] : row_of(f, z.v[0])), "copy from")) return;
    part_ok(f, option);
    Cmd *c = call(e, do_from_buffer, t, b);
    u64 w[] = { slice, level, o.v[0], o.v[1], o.v[2], z.v[0], z.v[1], z.v[2], at, row, plane, option };
    memcpy(c->w, w, sizeof w);
}
static void bt(id e, SEL s, id b, u64 at, u64 row, u64 plane, T_QQQ z, id t, u64 slice, u64 level, T_QQQ o) { bt_option(e, s, b, at, row, plane, z, t, slice, level, o, 0); }
static void do_between(Cmd *c)
{
    char *from = level_at(c->one, c->w[0], c->w[1]), *to = level_at(c->two, c->w[8], c->w[9]);
    u64 f = get_int(c->one, "pixelFormat"), row = row_of(f, c->w[5]), plane = plane_of(f, c->w[5], c->w[6]);
    char *b = malloc(plane * c->w[7]);
    if (from && to) move(c->one, from, c->w[1], c->w + 2, c->w + 5, b, row, plane, 1, 0), move(c->two, to, c->w[9], c->w + 10, c->w + 5, b, row, plane, 0, 0);
    free(b);
}
static void tt(id e, SEL s, id t, u64 slice, u64 level, T_QQQ o, T_QQQ z, id t2, u64 slice2, u64 level2, T_QQQ o2)
{
    (void)s;
    if (get_int(t, "pixelFormat") != get_int(t2, "pixelFormat")) offence("copyFromTexture: pixel formats differ");
    if (!level_at(t, slice, level) || !level_at(t2, slice2, level2) || !region_ok(t, level, o.v, z.v, "copyFromTexture") || !region_ok(t2, level2, o2.v, z.v, "toTexture")) return;
    Cmd *c = call(e, do_between, t, t2);
    u64 w[] = { slice, level, o.v[0], o.v[1], o.v[2], z.v[0], z.v[1], z.v[2], slice2, level2, o2.v[0], o2.v[1], o2.v[2] };
    memcpy(c->w, w, sizeof w);
}
static void do_copy_whole(Cmd *c) { memcpy(c->two->p, c->one->p, c->one->a < c->two->a ? c->one->a : c->two->a); }
static void tt_whole(id e, SEL s, id t, id t2) { (void)s; if (t->a != t2->a) { offence("copyFromTexture:toTexture: sizes differ"); return; } call(e, do_copy_whole, t, t2); }
static double channel(u64 f, const char *p, int i, int *n)      /* 8-bit and float formats */
{
    float v;
    *n = f == 10 || f == 55 ? 1 : f == 30 || f == 105 ? 2 : 4;
    if (f == 55 || f == 105 || f == 125) { memcpy(&v, p + 4 * i, 4); return v; }
    return (unsigned char)p[i];
}
static void do_mipmaps(Cmd *c)
{
    id t = c->one;
    u64 f = get_int(t, "pixelFormat"), each = formats[f].bytes;
    for (u64 s = 0; s < slices_of(t); s++) for (u64 l = 1; l < get_int(t, "mipmapLevelCount"); l++) {
        char *up = level_at(t, s, l - 1), *here = level_at(t, s, l);
        u64 w = dim(t, "width", l), h = dim(t, "height", l), uw = dim(t, "width", l - 1), uh = dim(t, "height", l - 1);
        for (u64 y = 0; y < h; y++) for (u64 x = 0; x < w; x++) for (int i = 0, n = 1; i < n; i++) {
            double sum = 0;
            for (u64 k = 0; k < 4; k++) { u64 ux = 2 * x + (k & 1), uy = 2 * y + (k >> 1); sum += channel(f, up + ((uy < uh ? uy : uh - 1) * uw + (ux < uw ? ux : uw - 1)) * each, i, &n); }
            float v = sum / 4;
            if (each == 4 * (u64)n && (f == 55 || f == 105 || f == 125)) memcpy(here + (y * w + x) * each + 4 * i, &v, 4); else here[(y * w + x) * each + i] = (char)(int)(v + 0.5);
        }
    }
}
static void bl_mipmaps(id e, SEL s, id t) { (void)s; if (get_int(t, "mipmapLevelCount") < 2) offence("generateMipmapsForTexture: one level only"); else call(e, do_mipmaps, t, 0); }

/* ---- render passes: attachments are cleared, resolved; draws only recorded ---- */
static u64 half(double d)
{
    float f = d; uint32_t u; memcpy(&u, &f, 4);
    int e = (int)(u >> 23 & 255) - 112;
    return (u >> 16 & 0x8000) | (e <= 0 ? 0 : e > 30 ? 0x7c00 : (uint32_t)e << 10 | (u >> 13 & 0x3ff));
}
static void pixel(u64 f, const double *c, char *out)
{
    static const int bgra[] = { 2, 1, 0, 3 };
    int n = f == 10 || f == 11 || f == 20 || f == 25 || f == 55 ? 1 : f == 30 || f == 31 || f == 60 || f == 65 || f == 105 ? 2 : 4;
    for (int i = 0; i < n; i++) {
        double v = c[f == 80 || f == 81 ? bgra[i] : i], unit = v < 0 ? 0 : v > 1 ? 1 : v;
        if (f == 55 || f == 105 || f == 125) { float w = v; memcpy(out + 4 * i, &w, 4); }
        else if (f == 25 || f == 65 || f == 115) { uint16_t w = half(v); memcpy(out + 2 * i, &w, 2); }
        else if (f == 20 || f == 60 || f == 110) { uint16_t w = unit * 65535 + 0.5; memcpy(out + 2 * i, &w, 2); }
        else if (f == 10 || f == 11 || f == 30 || f == 31 || f == 70 || f == 71 || f == 80 || f == 81) out[i] = (char)(int)(unit * 255 + 0.5);
    }
}
static void do_clear(Cmd *c)
{
    id t = c->one;
    char one[16] = {0};
    double color[4];
    u64 f = get_int(t, "pixelFormat"), each = formats[f].bytes, n = level_bytes(t, c->w[6]), from = 0, size = each;
    char *p = level_at(t, c->w[7], c->w[6]);
    memcpy(color, c->w, 32);
    if (c->w[8] == 1) { float d = color[0]; uint16_t w = color[0] * 65535 + 0.5; if (f == 250) memcpy(one, &w, 2); else memcpy(one, &d, 4); size = f == 250 ? 2 : 4; }
    else if (c->w[8] == 2) one[0] = (char)c->w[0], from = f == 253 ? 0 : each == 8 ? 4 : 3, size = 1;
    else pixel(f, color, one);
    for (u64 i = 0; p && i < n / each; i++) memcpy(p + i * each + from, one, size);
}
static void do_resolve(Cmd *c) { u64 each = formats[get_int(c->one, "pixelFormat")].bytes; for (u64 i = 0; i < c->two->a / each; i++) memcpy((char *)c->two->p + i * each, (char *)c->one->p + i * each, each); }
static void attachment(id e, id a, int kind)        /* kind: 0 colour, 1 depth, 2 stencil */
{
    id t = a ? get_object(a, "texture") : 0;
    if (!t) return;
    if (!(get_int(t, "usage") & 4)) offence("a texture without MTLTextureUsageRenderTarget in a render pass");
    if (get_int(a, "loadAction") == 1 && (t->b >> 4 & 15) == 3) offence("a memoryless texture is loaded");
    if (get_int(a, "storeAction") == 1 && (t->b >> 4 & 15) == 3) offence("a memoryless texture is stored");
    if (get_int(a, "loadAction") == 2) {
        Cmd *c = call(e, do_clear, t, 0);
        if (kind == 0) { T_dddd v = {{0, 0, 0, 1}}; get(a, S("clearColor"), &v, 32); memcpy(c->w, &v, 32); }
        else if (kind == 1) { double d = 1; get(a, S("clearDepth"), &d, 8); memcpy(c->w, &d, 8); }
        else c->w[0] = get_int(a, "clearStencil");
        c->w[6] = get_int(a, "level"), c->w[7] = get_int(a, "slice"), c->w[8] = kind;
    }
}
static id color_of(id pass, int i) { char key[8]; id list = get_object(pass, "colorAttachments"); snprintf(key, sizeof key, "#%d", i); return list ? get_object(list, key) : 0; }
static id r_new(id cb, SEL s, id pass)
{
    id e = encoder(cb, s, pass);
    for (int i = 0; i < 8; i++) attachment(e, color_of(pass, i), 0);
    attachment(e, get_object(pass, "depthAttachment"), 1), attachment(e, get_object(pass, "stencilAttachment"), 2);
    return e;
}
static void r_end(id e, SEL s)
{
    for (int i = 0; e->y && !e->a && i < 8; i++) {
        id a = color_of(e->y, i), t = a ? get_object(a, "texture") : 0, r = a ? get_object(a, "resolveTexture") : 0;
        u64 store = a ? get_int(a, "storeAction") : 0;
        if ((store == 2 || store == 3) && (!t || !r)) offence("multisample resolve without a texture to resolve into");
        else if (store == 2 || store == 3) call(e, do_resolve, t, r);
    }
    e_end(e, s);
}
static u64 format_of(id t) { return t ? get_int(t, "pixelFormat") : 0; }
static void r_pipeline(id e, SEL s, id p)
{
    c_pipeline(e, s, p);
    for (int i = 0; e->y && i < 8; i++) {
        id a = color_of(e->y, i), t = a ? get_object(a, "texture") : 0, b = color_of(p, i);
        u64 wants = b ? get_int(b, "pixelFormat") : 0;
        if (wants != format_of(t)) offence("the pipeline draws pixel format %lu, colour attachment %d has %lu", (unsigned long)wants, i, (unsigned long)format_of(t));
        if (t && at_least(get_int(p, "rasterSampleCount")) != get_int(t, "sampleCount")) offence("the pipeline has %lu samples, the texture %lu", (unsigned long)get_int(p, "rasterSampleCount"), (unsigned long)get_int(t, "sampleCount"));
    }
    id d = e->y ? get_object(e->y, "depthAttachment") : 0;
    if (e->y && get_int(p, "depthAttachmentPixelFormat") != format_of(d ? get_object(d, "texture") : 0)) offence("the pipeline's depth format is not the pass's");
}
static void r_buffer(id e, SEL s, id b, u64 offset, u64 i) { (void)e, (void)s; if (i > 30) offence("buffer index %lu exceeds 30", (unsigned long)i); if (b && offset >= b->a) offence("buffer offset %lu of %lu", (unsigned long)offset, (unsigned long)b->a); }
static void r_bytes(id e, SEL s, const void *p, u64 n, u64 i) { (void)e, (void)s, (void)p; if (n > 4096 || i > 30) offence("setBytes: %lu bytes at %lu", (unsigned long)n, (unsigned long)i); }
static void r_sampler(id e, SEL s, id o, u64 i) { (void)e, (void)s, (void)o; if (i > 15) offence("sampler index %lu exceeds 15", (unsigned long)i); }
static void r_texture(id e, SEL s, id o, u64 i) { (void)e, (void)s, (void)o; if (i > 127) offence("texture index %lu exceeds 127", (unsigned long)i); }
static id rp_new(id o, SEL s, id d, id *error)
{
    if (!get_object(d, "vertexFunction")) { if (error) *error = error_make("AGXMetal", 3, "Vertex function must be set"); return 0; }
    return new_child(o, class_for(method_now(o, s)->result), d);
}
static id rp_reflect(id o, SEL s, id d, u64 options, id *reflection, id *error)
{
    (void)options;
    if (reflection) *reflection = objc_autorelease(make(objc_getClass("MTLRenderPipelineReflection")));
    return rp_new(o, s, d, error);
}
static id pr_render(id e, SEL s)
{
    id r = make(class_for(method_now(e, s)->result));
    r->x = objc_retain(e->x), r->p = calloc(1, sizeof(Bindings)), r->y = objc_retain(e->y), r->c = 1;
    e->x->b++;
    return objc_autorelease(r);
}

/* ---- heaps: b = used, p = memory of a placement heap ---- */
static char *placed(id h, u64 offset, u64 n)
{
    u64 size = get_int(h, "size");
    if (get_int(h, "type") != 1) { offence("an offset in a heap that is no placement heap"); return 0; }
    if (offset + n > size || offset & 255) { offence("%lu bytes at %lu of a heap of %lu", (unsigned long)n, (unsigned long)offset, (unsigned long)size); return 0; }
    if (!h->p) h->p = page(size);
    return (char *)h->p + offset;
}
static id hp_buffer(id h, SEL s, u64 n, u64 options, u64 offset)
{
    char *p = placed(h, offset, n);
    id b = p ? buffer_n(h, s, p, n, options, 0) : 0;
    if (b) { h->b = offset + n > h->b ? offset + n : h->b; put_object(b, "heap", h); put_int(b, "heapOffset", offset); }
    return b;
}
static id hp_texture(id h, SEL s, id d)
{
    id t = texture(h, s, d, 0);
    if (t && h->b + t->a > get_int(h, "size") && get_int(h, "type") != 2) { objc_release(t); return 0; }
    if (t) t->x = objc_retain(h), h->b += t->a, put_object(t, "heap", h), put_int(t, "sparse", get_int(h, "type") == 2);
    return t;
}
static id hp_texture_at(id h, SEL s, id d, u64 offset)
{
    char *p = placed(h, offset, 0);
    id t = p ? texture(h, s, d, p) : 0;
    if (t && offset + t->a > get_int(h, "size")) { objc_release(t); return 0; }
    if (t) put_object(t, "heap", h), put_int(t, "heapOffset", offset);
    return t;
}
static u64 hp_allocated(id h, SEL s) { (void)s; return get_int(h, "size"); }
static void hp_free(id h) { free(h->p); }
static T_QQ need_buffer(id o, SEL s, u64 n, u64 options) { (void)o, (void)s, (void)options; return (T_QQ){{ (n + 255) & ~255ULL, 256 }}; }
static T_QQ need_texture(id o, SEL s, id d)
{
    id t = make(objc_getClass("AGXTexture"));
    (void)o, (void)s;
    copy_props(d, t);
    T_QQ r = {{ (slice_bytes(t) * slices_of(t) + 255) & ~255ULL, 256 }};
    objc_release(t);
    return r;
}

/* ---- indirect command buffers: they hold their commands, and none of what those use ---- */
static id icb_command(id o, SEL s, u64 i)
{
    char key[40];
    if (i >= get_int(o, "size")) { offence("%s %lu of %lu", s, (unsigned long)i, (unsigned long)get_int(o, "size")); return 0; }
    snprintf(key, sizeof key, "#%lu", (unsigned long)i);
    id c = get_object(o, key);
    if (c) return c;
    c = make(class_for(method_now(o, s)->result));
    c->p = calloc(1, sizeof(Bindings)), c->x = o;
    put_object(o, key, c);
    objc_release(c);
    return c;
}
static void ic_free(id c) { free(c->p); }
static void ic_pipeline(id c, SEL s, id p)
{
    (void)s;
    if (!get_int(p, "supportIndirectCommandBuffers")) offence("a pipeline without supportIndirectCommandBuffers in an indirect command");
    ((Bindings *)c->p)->pipeline = p;
}
static void ic_buffer(id c, SEL s, id b, u64 offset, u64 i)
{
    const char *most = strstr(s, "Kernel") ? "maxKernelBufferBindCount" : strstr(s, "Vertex") ? "maxVertexBufferBindCount" : "maxFragmentBufferBindCount";
    if (i >= get_int(c->x, most)) { offence("%s index %lu, %s is %lu", s, (unsigned long)i, most, (unsigned long)get_int(c->x, most)); return; }
    if (!strstr(s, "Kernel")) return;
    ((Bindings *)c->p)->buffers[i] = b, ((Bindings *)c->p)->offsets[i] = offset;
}
static void ic_run(id c, T_QQQ grid, T_QQQ group, int by_threads) { put(c, S("grid"), &grid, 24, 0), put(c, S("group"), &group, 24, 0), put_int(c, "kind", by_threads + 1); }
static void ic_threads(id c, SEL s, T_QQQ grid, T_QQQ group) { (void)s; if (!(get_int(c->x, "commandTypes") & 64)) offence("%s is not in commandTypes", s); ic_run(c, grid, group, 1); }
static void ic_groups(id c, SEL s, T_QQQ grid, T_QQQ group) { (void)s; if (!(get_int(c->x, "commandTypes") & 32)) offence("%s is not in commandTypes", s); ic_run(c, grid, group, 0); }
static void ic_reset(id c, SEL s) { (void)s; memset(c->p, 0, sizeof(Bindings)); put_int(c, "kind", 0); }
static void icb_reset(id o, SEL s, T_QQ r) { char key[40]; for (u64 i = r.v[0]; i < r.v[0] + r.v[1]; i++) { snprintf(key, sizeof key, "#%lu", (unsigned long)i); id c = get_object(o, key); if (c) ic_reset(c, s); } }
static void mark(id e, const char *what, id one) { char key[48]; snprintf(key, sizeof key, "%s%p", what, (void *)one); put_int(e, key, 1); }
static int marked(id e, const char *what, id one) { char key[48]; snprintf(key, sizeof key, "%s%p", what, (void *)one); return get_int(e, key) != 0; }
static void x_use(id e, SEL s, id r, u64 usage) { (void)s, (void)usage; mark(e, "uses ", r); }
static void x_uses(id e, SEL s, id const *r, u64 n, u64 usage) { for (u64 i = 0; i < n; i++) x_use(e, s, r[i], usage); }
static void x_groups(id e, SEL s, T_QQQ grid, T_QQQ group)      /* 0 groups of 0 threads: how a pipeline is shown to an M1 or M2 */
{
    u64 n = 0;
    for (int i = 0; i < 3; i++) n += grid.v[i] + group.v[i];
    id p = ((Bindings *)e->p)->pipeline;
    if (n || !p || !get_int(p, "supportIndirectCommandBuffers")) c_groups(e, s, grid, group); else mark(e, "seen ", p);
}
static void x_execute(id e, SEL s, id icb, T_QQ r)
{
    void *mine = e->p;
    (void)s;
    if (r.v[0] + r.v[1] > get_int(icb, "size")) { offence("commands %lu + %lu of %lu", (unsigned long)r.v[0], (unsigned long)r.v[1], (unsigned long)get_int(icb, "size")); return; }
    for (u64 i = r.v[0]; i < r.v[0] + r.v[1]; i++) {
        char key[40];
        T_QQQ grid, group;
        snprintf(key, sizeof key, "#%lu", (unsigned long)i);
        id c = get_object(icb, key);
        if (!c || !get_int(c, "kind")) continue;
        Bindings *b = c->p;
        if (HEAD(b->pipeline)->dead) { offence("indirect command %lu: its pipeline is gone", (unsigned long)i); continue; }
        if (!v_family(the_device, s, 1009) && !marked(e, "seen ", b->pipeline)) offence("indirect command %lu: an M1 or M2 would fault, the encoder has not seen its pipeline", (unsigned long)i);
        for (int k = 0; k < 31; k++) if (b->buffers[k]) {
            if (HEAD(b->buffers[k])->dead) { offence("indirect command %lu: buffer %d is gone", (unsigned long)i, k); b->buffers[k] = 0; }
            else if (!marked(e, "uses ", b->buffers[k])) offence("indirect command %lu: buffer %d was not named with useResource:", (unsigned long)i, k);
        }
        get(c, S("grid"), &grid, 24), get(c, S("group"), &group, 24);
        e->p = b;
        dispatch(e, grid, group, get_int(c, "kind") == 2);
        e->p = mine;
    }
}
static id icb_make(id o, SEL s, id d, u64 n, u64 options)
{
    if (!n || n > 16384) { offence("indirect command buffer of %lu commands", (unsigned long)n); return 0; }
    return icb_new(o, s, d, n, options);
}

/* ---- binary archives: a file of names ---- */
static id ar_new(id o, SEL s, id d, id *error)
{
    id url = get_object(d, "url"), a;
    char line[300] = "";
    FILE *f = url ? fopen(text(get_object(url, "path")), "r") : 0;
    if (url && (!f || !fgets(line, sizeof line, f) || strcmp(line, "FAKE ARCHIVE\n"))) {
        if (f) fclose(f);
        if (error) *error = error_make("MTLBinaryArchiveDomain", 1, "The file is not a valid archive of this GPU");
        return 0;
    }
    a = new_child(o, class_for(method_now(o, s)->result), 0);
    while (f && fgets(line, sizeof line, f)) { line[strcspn(line, "\n")] = 0; char key[300]; snprintf(key, sizeof key, "#%s", line); put_int(a, key, 1); }
    if (f) fclose(f);
    return a;
}
static char ar_put(id a, id f, id *error)
{
    char key[300];
    if (!f) { if (error) *error = error_make("MTLBinaryArchiveDomain", 2, "no function"); return 0; }
    snprintf(key, sizeof key, "#%s", text(get_object(f, "name")));
    put_int(a, key, 1);
    return 1;
}
static char ar_compute(id a, SEL s, id d, id *error) { (void)s; return ar_put(a, get_object(d, "computeFunction"), error); }
static char ar_render(id a, SEL s, id d, id *error) { (void)s; return ar_put(a, get_object(d, "vertexFunction"), error) && (!get_object(d, "fragmentFunction") || ar_put(a, get_object(d, "fragmentFunction"), error)); }
static char ar_save(id a, SEL s, id url, id *error)
{
    u64 n = 0;
    (void)s, (void)error;
    for (Prop *p = a->props; p; p = p->next) n += ((const char *)p->key)[0] == '#';
    if (!n) return 0;       /* NO without an error, as macOS before 15 has it */
    FILE *f = fopen(text(get_object(url, "path")), "w");
    if (!f) { if (error) *error = error_make("NSCocoaErrorDomain", 4, "The folder doesn't exist."); return 0; }
    fputs("FAKE ARCHIVE\n", f);
    for (Prop *p = a->props; p; p = p->next) if (((const char *)p->key)[0] == '#') fprintf(f, "%s\n", (const char *)p->key + 1);
    fclose(f);
    return 1;
}
static id p_archived(id o, SEL s, id d, u64 options, id *reflection, id *error)
{
    id list = get_object(d, "binaryArchives"), f = get_object(d, "computeFunction");
    char key[300];
    snprintf(key, sizeof key, "#%s", f ? text(get_object(f, "name")) : "");
    int found = 0;
    for (u64 i = 0; list && i < list->a; i++) found |= get_int(((id *)list->p)[i], key) != 0;
    if (options & 4 && !found) { if (error) *error = error_make("MTLBinaryArchiveDomain", 2, "The pipeline is not in the archive"); return 0; }
    id p = p_descriptor(o, s, d, options, reflection, error);
    if (p) put_int(p, "supportIndirectCommandBuffers", get_int(d, "supportIndirectCommandBuffers")), put_object(p, "linkedFunctions", get_object(d, "linkedFunctions"));
    return p;
}

/* ---- capture ---- */
static char cp_supports(id m, SEL s, int64_t where) { const char *e = getenv("MTL_CAPTURE_ENABLED"); (void)m, (void)s; return where == 2 && e && e[0] == '1'; }
static char cp_start(id m, SEL s, id d, id *error)
{
    id url = get_object(d, "outputURL");
    const char *why = get_int(m, "capturing") ? "already capturing" : !cp_supports(m, s, get_int(d, "destination")) ? "Capturing is not supported." : !get_object(d, "captureObject") ? "no object to capture" : !url ? "no file" : !access(text(get_object(url, "path")), 0) ? "the file exists" : 0;
    if (why) { if (error) *error = error_make("MTLCaptureErrorDomain", 1, why); return 0; }
    put_int(m, "capturing", 1), put_object(m, "output", url);
    return 1;
}
static void cp_scope(id m, SEL s, id scope) { (void)s; if (!scope) offence("capture of nil"); put_int(m, "capturing", 1); }
static void cp_stop(id m, SEL s)
{
    id url = get_object(m, "output");
    FILE *f = url ? fopen(text(get_object(url, "path")), "w") : 0;
    (void)s;
    if (!get_int(m, "capturing")) offence("stopCapture without a capture");
    if (f) fprintf(f, "FAKE CAPTURE\n%s", fake_recorded()), fclose(f);
    put_int(m, "capturing", 0), put_object(m, "output", 0);
}
static id cp_new(id m, SEL s, id of)
{
    id c = make(class_for(method_now(m, s)->result)), device = get_object(of, "device");
    put_object(c, "device", device ? device : of);
    if (device) put_object(c, "commandQueue", of);
    return c;
}

/* ---- layers, files, ray tracing, tiles, Metal 4 ---- */
static id ca_next(id l, SEL s)
{
    T_dd size = {{0, 0}};
    id device = get_object(l, "device"), d = make(objc_getClass("MTLTextureDescriptor")), t, drawable;
    get(l, S("drawableSize"), &size, 16);
    put_int(d, "pixelFormat", get_int(l, "pixelFormat") ? get_int(l, "pixelFormat") : 80), put_int(d, "width", size.v[0]), put_int(d, "height", size.v[1]);
    put_int(d, "textureType", 2), put_int(d, "usage", 4), put_int(d, "storageMode", 0);
    t = device && size.v[0] >= 1 && size.v[1] >= 1 ? texture(device, S("newTextureWithDescriptor:"), d, 0) : 0;
    objc_release(d);
    if (!t) return 0;
    drawable = make(class_for(method_now(l, s)->result));
    put_object(drawable, "texture", t), put_object(drawable, "layer", l);
    objc_release(t);
    return objc_autorelease(drawable);
}
static id io_open(id o, SEL s, id url, id *error)
{
    if (access(text(get_object(url, "path")), 4)) { if (error) *error = error_make("MTLIOErrorDomain", 1, "no such file"); return 0; }
    id h = new_child(o, class_for(method_now(o, s)->result), 0);
    put_object(h, "url", url);
    return h;
}
static id io_queue(id o, SEL s, id d, id *error) { (void)error; return new_child(o, class_for(method_now(o, s)->result), d); }
static id io_commands(id q, SEL s) { return objc_autorelease(new_child(q, class_for(method_now(q, s)->result), 0)); }
static void io_read(id c, id h, u64 at, char *to, u64 n)
{
    FILE *f = fopen(text(get_object(get_object(h, "url"), "path")), "rb");
    if (!f || fseek(f, at, 0) || fread(to, 1, n, f) != n) put_int(c, "status", 2); else if (!get_int(c, "status")) put_int(c, "status", 3);
    if (f) fclose(f);
}
static void io_buffer(id c, SEL s, id b, u64 offset, u64 n, id h, u64 at) { (void)s; if (inside(b, offset, n, "loadBuffer")) io_read(c, h, at, (char *)b->p + offset, n); }
static void io_texture(id c, SEL s, id t, u64 slice, u64 level, T_QQQ z, u64 row, u64 plane, T_QQQ o, id h, u64 at)
{
    char *p = level_at(t, slice, level), *b = calloc(1, plane ? plane * z.v[2] : row * z.v[1]);
    (void)s;
    if (p && region_ok(t, level, o.v, z.v, "loadTexture")) { io_read(c, h, at, b, plane ? plane * z.v[2] : row * z.v[1]); move(t, p, level, o.v, z.v, b, row, plane, 0, 0); }
    free(b);
}
typedef struct { u64 count; float v[]; } Scene;
static u64 triangles(id d) { u64 n = 0; id list = get_object(d, "geometryDescriptors"); for (u64 i = 0; list && i < list->a; i++) n += get_int(((id *)list->p)[i], "triangleCount"); return n; }
static T_QQQ as_sizes(id o, SEL s, id d) { u64 n = sizeof(Scene) + 36 * triangles(d) + 64 * get_int(d, "instanceCount"); (void)o, (void)s; return (T_QQQ){{ (n + 255) & ~255ULL, 256 + n, n }}; }
static id as_new(id o, SEL s, u64 n) { id a = new_child(o, class_for(method_now(o, s)->result), 0); a->p = calloc(1, n + 16), a->a = n, a->t[0] = 1; put_int(a, "size", n); return a; }
static id as_new_for(id o, SEL s, id d) { return as_new(o, s, as_sizes(o, s, d).v[0]); }
static void as_free(id o) { free(o->p); }
static void do_build(Cmd *c)
{
    Scene *scene = c->one->p;
    id list = get_object(c->two, "geometryDescriptors");
    scene->count = 0;
    for (u64 g = 0; list && g < list->a; g++) {
        id d = ((id *)list->p)[g], b = get_object(d, "vertexBuffer"), x = get_object(d, "indexBuffer");
        u64 stride = get_int(d, "vertexStride"), n = get_int(d, "triangleCount"), from = get_int(d, "vertexBufferOffset"), wide = get_int(d, "indexType");
        if (!b) { offence("geometry without vertices"); continue; }
        for (u64 i = 0; i < 3 * n; i++) {
            char *ix = x ? (char *)x->p + get_int(d, "indexBufferOffset") : 0;
            u64 k = !ix ? i : wide ? ((uint32_t *)ix)[i] : ((uint16_t *)ix)[i];
            if (inside(b, from + k * (stride ? stride : 12), 12, "vertex")) memcpy(scene->v + 9 * scene->count + 3 * (i % 3), (char *)b->p + from + k * (stride ? stride : 12), 12);
            if (i % 3 == 2) scene->count++;
        }
    }
}
static void as_build(id e, SEL s, id a, id d, id scratch, u64 offset)
{
    T_QQQ need = as_sizes(0, s, d);
    if (a->a < need.v[0]) { offence("an acceleration structure of %lu bytes, %lu needed", (unsigned long)a->a, (unsigned long)need.v[0]); return; }
    if (inside(scratch, offset, need.v[1], "scratch")) call(e, do_build, a, d);
}
static void do_copy_scene(Cmd *c) { memcpy(c->two->p, c->one->p, c->one->a < c->two->a ? c->one->a : c->two->a); }
static void as_copy(id e, SEL s, id a, id b) { (void)s; call(e, do_copy_scene, a, b); }
static void do_size(Cmd *c) { Scene *x = c->one->p; uint32_t n = sizeof *x + 36 * x->count; memcpy((char *)c->two->p + c->w[0], &n, 4); }
static void as_compacted(id e, SEL s, id a, id b, u64 offset) { (void)s; if (inside(b, offset, 4, "size")) call(e, do_size, a, b)->w[0] = offset; }
static void c_scene(id e, SEL s, id a, u64 i) { c_buffer(e, s, a, 0, i); }
static T_QQQ tile_size(id o, SEL s, u64 kind, u64 format, u64 samples) { (void)o, (void)s, (void)kind, (void)samples; u64 n = formats[format].bytes; return (T_QQQ){{ n > 4 ? 32 : n > 1 ? 64 : 128, n == 16 || n == 2 ? n == 16 ? 32 : 128 : n > 4 ? 64 : n > 1 ? 64 : 128, 1 }}; }
static u64 tile_bytes(id o, SEL s) { (void)o, (void)s; return 16384; }
static id m4_encoder(id o, SEL s) { return objc_autorelease(make(class_for(method_now(o, s)->result))); }
static id m4_render(id o, SEL s, id pass) { return objc_autorelease(new_child(o, class_for(method_now(o, s)->result), pass)); }
static id m4_made(id o, SEL s, id d, id *error) { (void)error; return new_child(o, class_for(method_now(o, s)->result), d); }
static void ae_object(id o, SEL s, id one, u64 i) { u64 v = (u64)one; (void)s; if (o->x && inside(o->x, o->a + 8 * i, 8, "argument")) memcpy((char *)o->x->p + o->a + 8 * i, &v, 8); }

/* ---- Metal Performance Shaders: one class that computes, as an example of any ---- */
static id mps_layout(id c, SEL s, u64 rows, u64 columns, u64 row_bytes, uint32_t type)
{
    id d = objc_autorelease(make((Cls *)c));
    (void)s;
    put_int(d, "rows", rows), put_int(d, "columns", columns), put_int(d, "rowBytes", row_bytes), put_int(d, "dataType", type);
    return d;
}
static id mps_matrix(id m, SEL s, id b, id d)
{
    (void)s;
    if (get_int(d, "rows") * get_int(d, "rowBytes") > b->a) offence("MPSMatrix: the buffer is too short");
    put_object(m, "data", b);
    copy_props(d, m);
    return m;
}
static id mps_product(id o, SEL s, id device, char left, char right, u64 rows, u64 columns, u64 inner, double alpha, double beta)
{
    (void)s;
    put_object(o, "device", device), put_int(o, "left", left), put_int(o, "right", right), put_int(o, "rows", rows), put_int(o, "columns", columns);
    put_int(o, "inner", inner), put(o, S("alpha"), &alpha, 8, 0), put(o, S("beta"), &beta, 8, 0);
    return o;
}
static float *cell(id m, u64 i, u64 j) { return (float *)((char *)get_object(m, "data")->p + i * get_int(m, "rowBytes")) + j; }
static void do_product(Cmd *c)
{
    id k = c->one, a = ((id *)c->two->p)[0], b = ((id *)c->two->p)[1], r = ((id *)c->two->p)[2];
    double alpha = 0, beta = 0;
    get(k, S("alpha"), &alpha, 8), get(k, S("beta"), &beta, 8);
    for (u64 i = 0; i < get_int(k, "rows"); i++) for (u64 j = 0; j < get_int(k, "columns"); j++) {
        double sum = 0;
        for (u64 n = 0; n < get_int(k, "inner"); n++) sum += *(get_int(k, "left") ? cell(a, n, i) : cell(a, i, n)) * *(get_int(k, "right") ? cell(b, j, n) : cell(b, n, j));
        *cell(r, i, j) = alpha * sum + (beta ? beta * *cell(r, i, j) : 0);
    }
}
static void mps_encode(id o, SEL s, id cb, id left, id right, id result)
{
    (void)s;
    if (cb->b) offence("MPS encoding while an encoder is open");
    Cmd *c = cmd(cb, CALL);
    id three[] = { left, right, result };
    c->call = do_product, c->one = objc_retain(o), c->two = array_n(three, 3);
}

#define GRAPHICS_NATIVES \
    {"MTLDevice", "-newTextureWithDescriptor:", tx_new}, {"MTLDevice", "-supportsTextureSampleCount:", sample_count}, {"MTLTexture", "-newTextureViewWithPixelFormat:", tx_view}, \
    {"MTLTexture", "-newTextureViewWithPixelFormat:textureType:levels:slices:", tx_view_of}, {"MTLTexture", "-getBytes:bytesPerRow:bytesPerImage:fromRegion:mipmapLevel:slice:", tx_get}, \
    {"MTLTexture", "-getBytes:bytesPerRow:fromRegion:mipmapLevel:", tx_get_2d}, {"MTLTexture", "-replaceRegion:mipmapLevel:slice:withBytes:bytesPerRow:bytesPerImage:", tx_put}, \
    {"MTLTexture", "-replaceRegion:mipmapLevel:withBytes:bytesPerRow:", tx_put_2d}, \
    {"MTLBlitCommandEncoder", "-copyFromTexture:sourceSlice:sourceLevel:sourceOrigin:sourceSize:toBuffer:destinationOffset:destinationBytesPerRow:destinationBytesPerImage:", tb}, \
    {"MTLBlitCommandEncoder", "-copyFromTexture:sourceSlice:sourceLevel:sourceOrigin:sourceSize:toBuffer:destinationOffset:destinationBytesPerRow:destinationBytesPerImage:options:", tb_option}, \
    {"MTLBlitCommandEncoder", "-copyFromBuffer:sourceOffset:sourceBytesPerRow:sourceBytesPerImage:sourceSize:toTexture:destinationSlice:destinationLevel:destinationOrigin:", bt}, \
    {"MTLBlitCommandEncoder", "-copyFromBuffer:sourceOffset:sourceBytesPerRow:sourceBytesPerImage:sourceSize:toTexture:destinationSlice:destinationLevel:destinationOrigin:options:", bt_option}, \
    {"MTLBlitCommandEncoder", "-copyFromTexture:sourceSlice:sourceLevel:sourceOrigin:sourceSize:toTexture:destinationSlice:destinationLevel:destinationOrigin:", tt}, \
    {"MTLBlitCommandEncoder", "-copyFromTexture:toTexture:", tt_whole}, {"MTLBlitCommandEncoder", "-generateMipmapsForTexture:", bl_mipmaps}, \
    {"MTLCommandBuffer", "-renderCommandEncoderWithDescriptor:", r_new}, {"MTLCommandBuffer", "-parallelRenderCommandEncoderWithDescriptor:", r_new}, \
    {"MTLParallelRenderCommandEncoder", "-renderCommandEncoder", pr_render}, {"AGXRenderCommandEncoder", "-endEncoding", r_end}, {"MTLRenderCommandEncoder", "-setRenderPipelineState:", r_pipeline}, \
    {"MTLRenderCommandEncoder", "-setVertexBuffer:offset:atIndex:", r_buffer}, {"MTLRenderCommandEncoder", "-setFragmentBuffer:offset:atIndex:", r_buffer}, \
    {"MTLRenderCommandEncoder", "-setVertexBytes:length:atIndex:", r_bytes}, {"MTLRenderCommandEncoder", "-setFragmentBytes:length:atIndex:", r_bytes}, \
    {"MTLRenderCommandEncoder", "-setVertexTexture:atIndex:", r_texture}, {"MTLRenderCommandEncoder", "-setFragmentTexture:atIndex:", r_texture}, \
    {"MTLRenderCommandEncoder", "-setVertexSamplerState:atIndex:", r_sampler}, {"MTLRenderCommandEncoder", "-setFragmentSamplerState:atIndex:", r_sampler}, \
    {"MTLDevice", "-newRenderPipelineStateWithDescriptor:error:", rp_new}, {"MTLDevice", "-newRenderPipelineStateWithDescriptor:options:reflection:error:", rp_reflect}, \
    {"MTLHeap", "-newBufferWithLength:options:offset:", hp_buffer}, {"MTLHeap", "-newTextureWithDescriptor:", hp_texture}, {"MTLHeap", "-newTextureWithDescriptor:offset:", hp_texture_at}, \
    {"MTLHeap", "-currentAllocatedSize", hp_allocated}, {"MTLDevice", "-heapBufferSizeAndAlignWithLength:options:", need_buffer}, {"MTLDevice", "-heapTextureSizeAndAlignWithDescriptor:", need_texture}, \
    {"MTLDevice", "-newIndirectCommandBufferWithDescriptor:maxCommandCount:options:", icb_make}, {"MTLIndirectCommandBuffer", "-indirectComputeCommandAtIndex:", icb_command}, \
    {"MTLIndirectCommandBuffer", "-indirectRenderCommandAtIndex:", icb_command}, {"MTLIndirectCommandBuffer", "-resetWithRange:", icb_reset}, {"MTLIndirectComputeCommand", "-setComputePipelineState:", ic_pipeline}, \
    {"MTLIndirectRenderCommand", "-setRenderPipelineState:", ic_pipeline}, {"MTLIndirectComputeCommand", "-setKernelBuffer:offset:atIndex:", ic_buffer}, \
    {"MTLIndirectRenderCommand", "-setVertexBuffer:offset:atIndex:", ic_buffer}, {"MTLIndirectRenderCommand", "-setFragmentBuffer:offset:atIndex:", ic_buffer}, \
    {"MTLIndirectComputeCommand", "-concurrentDispatchThreads:threadsPerThreadgroup:", ic_threads}, {"MTLIndirectComputeCommand", "-concurrentDispatchThreadgroups:threadsPerThreadgroup:", ic_groups}, \
    {"MTLIndirectComputeCommand", "-reset", ic_reset}, {"MTLIndirectRenderCommand", "-reset", ic_reset}, {"MTLComputeCommandEncoder", "-useResource:usage:", x_use}, {"MTLComputeCommandEncoder", "-useResources:count:usage:", x_uses}, \
    {"MTLComputeCommandEncoder", "-dispatchThreadgroups:threadsPerThreadgroup:", x_groups}, {"MTLComputeCommandEncoder", "-executeCommandsInBuffer:withRange:", x_execute}, \
    {"MTLDevice", "-newBinaryArchiveWithDescriptor:error:", ar_new}, {"MTLBinaryArchive", "-addComputePipelineFunctionsWithDescriptor:error:", ar_compute}, \
    {"MTLBinaryArchive", "-addRenderPipelineFunctionsWithDescriptor:error:", ar_render}, {"MTLBinaryArchive", "-serializeToURL:error:", ar_save}, \
    {"MTLDevice", "-newComputePipelineStateWithDescriptor:options:reflection:error:", p_archived}, {"MTLCaptureManager", "-supportsDestination:", cp_supports}, \
    {"MTLCaptureManager", "-startCaptureWithDescriptor:error:", cp_start}, {"MTLCaptureManager", "-startCaptureWithScope:", cp_scope}, {"MTLCaptureManager", "-startCaptureWithDevice:", cp_scope}, \
    {"MTLCaptureManager", "-stopCapture", cp_stop}, {"MTLCaptureManager", "-newCaptureScopeWithDevice:", cp_new}, {"MTLCaptureManager", "-newCaptureScopeWithCommandQueue:", cp_new}, \
    {"CAMetalLayer", "-nextDrawable", ca_next}, {"MTLDevice", "-newIOHandleWithURL:error:", io_open}, {"MTLDevice", "-newIOFileHandleWithURL:error:", io_open}, {"MTLDevice", "-newIOCommandQueueWithDescriptor:error:", io_queue}, \
    {"MTLIOCommandQueue", "-commandBuffer", io_commands}, {"MTLIOCommandBuffer", "-loadBuffer:offset:size:sourceHandle:sourceHandleOffset:", io_buffer}, \
    {"MTLIOCommandBuffer", "-loadTexture:slice:level:size:sourceBytesPerRow:sourceBytesPerImage:destinationOrigin:sourceHandle:sourceHandleOffset:", io_texture}, \
    {"MTLDevice", "-accelerationStructureSizesWithDescriptor:", as_sizes}, {"MTLDevice", "-newAccelerationStructureWithSize:", as_new}, {"MTLDevice", "-newAccelerationStructureWithDescriptor:", as_new_for}, \
    {"MTLCommandBuffer", "-accelerationStructureCommandEncoder", e_plain}, {"MTLCommandBuffer", "-accelerationStructureCommandEncoderWithDescriptor:", e_pass}, \
    {"MTLCommandBuffer", "-resourceStateCommandEncoder", e_plain}, {"MTLCommandBuffer", "-resourceStateCommandEncoderWithDescriptor:", e_pass}, \
    {"MTLAccelerationStructureCommandEncoder", "-buildAccelerationStructure:descriptor:scratchBuffer:scratchBufferOffset:", as_build}, \
    {"MTLAccelerationStructureCommandEncoder", "-copyAccelerationStructure:toAccelerationStructure:", as_copy}, {"MTLAccelerationStructureCommandEncoder", "-copyAndCompactAccelerationStructure:toAccelerationStructure:", as_copy}, \
    {"MTLAccelerationStructureCommandEncoder", "-writeCompactedAccelerationStructureSize:toBuffer:offset:", as_compacted}, {"MTLComputeCommandEncoder", "-setAccelerationStructure:atBufferIndex:", c_scene}, \
    {"MTLDevice", "-sparseTileSizeWithTextureType:pixelFormat:sampleCount:", tile_size}, {"MTLDevice", "-sparseTileSizeInBytes", tile_bytes}, {"MTLArgumentEncoder", "-setTexture:atIndex:", ae_object}, \
    {"MTLArgumentEncoder", "-setSamplerState:atIndex:", ae_object}, {"MTL4CommandBuffer", "-computeCommandEncoder", m4_encoder}, {"MTL4CommandBuffer", "-renderCommandEncoderWithDescriptor:", m4_render}, \
    {"MTLDevice", "-newArgumentTableWithDescriptor:error:", m4_made}, {"MTLDevice", "-newCompilerWithDescriptor:error:", m4_made}, {"MTLDevice", "-newMTL4CommandQueueWithDescriptor:error:", m4_made}, \
    {"MPSMatrixDescriptor", "+matrixDescriptorWithRows:columns:rowBytes:dataType:", mps_layout}, {"MPSMatrix", "-initWithBuffer:descriptor:", mps_matrix}, \
    {"MPSMatrixMultiplication", "-initWithDevice:transposeLeft:transposeRight:resultRows:resultColumns:interiorColumns:alpha:beta:", mps_product}, \
    {"MPSMatrixMultiplication", "-encodeToCommandBuffer:leftMatrix:rightMatrix:resultMatrix:", mps_encode},

static void *graphics_dealloc(const char *what)
{
    static const struct { const char *n; void *f; } table[] = { {"texture", tx_free}, {"heap", hp_free}, {"indirect", ic_free}, {"scene", as_free}, {0, 0} };
    for (int i = 0; table[i].n; i++) if (!strcmp(table[i].n, what)) return table[i].f;
    return metal_dealloc(what);
}
