/* metal_raytracing for fakemsl.h: triangles of a primitive acceleration structure, met one by one. No instances, curves,
 * boxes or intersection functions. */
namespace metal {
inline float3 cross(float3 a, float3 b) { return float3(a.y * b.z - a.z * b.y, a.z * b.x - a.x * b.z, a.x * b.y - a.y * b.x); }
namespace raytracing {
struct ray { float3 origin, direction; float min_distance, max_distance; ray(float3 o = float3(), float3 d = float3(), float n = 0, float f = INFINITY) : origin(o), direction(d), min_distance(n), max_distance(f) {} };
enum class intersection_type { none, triangle, bounding_box };
enum class geometry_type { none, triangle, bounding_box, all };
struct triangle_data {};
struct FakeScene { uint64_t count; float v[1]; };
struct primitive_acceleration_structure { const FakeScene *scene; primitive_acceleration_structure(void *p = 0) : scene((const FakeScene *)p) {} };
template <class... T> struct intersection_result { intersection_type type; float distance; uint primitive_id, geometry_id; float2 triangle_barycentric_coord; };
template <class... T> struct intersector {
    using result_type = intersection_result<T...>;
    bool any = false;
    void assume_geometry_type(geometry_type) {}
    void accept_any_intersection(bool yes) { any = yes; }
    result_type intersect(ray r, primitive_acceleration_structure s) const
    {
        result_type best = {intersection_type::none, r.max_distance, 0, 0, float2()};
        for (uint n = 0; s.scene && n < s.scene->count; n++) {
            const float *v = s.scene->v + 9 * n;
            float3 a(v[0], v[1], v[2]), e = float3(v[3], v[4], v[5]) - a, f = float3(v[6], v[7], v[8]) - a, p = cross(r.direction, f), t = r.origin - a, q = cross(t, e);
            float d = dot(e, p), u = dot(t, p) / d, w = dot(r.direction, q) / d, at = dot(f, q) / d;
            if (d == 0 || u < 0 || w < 0 || u + w > 1 || at < r.min_distance || at >= best.distance) continue;
            best = {intersection_type::triangle, at, n, 0, float2(u, w)};
            if (any) break;
        }
        return best;
    }
};
}
}
