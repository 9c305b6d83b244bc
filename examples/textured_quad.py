"""A PNG on two triangles, with mipmaps, a sampler and blending.        python textured_quad.py [in.png [quad.png]]"""
import os
import sys

sys.path.insert(1, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))     # the copy beside the examples
import pyapplegpu as ag

SOURCE = """
#include <metal_stdlib>
using namespace metal;
struct Corner { float4 position [[position]]; float2 at; };
vertex Corner corner(uint i [[vertex_id]], constant float &scale [[buffer(0)]]) {
    Corner c;
    c.at = float2(i & 1, i >> 1);
    c.position = float4((c.at * 2 - 1) * float2(scale, -scale), 0, 1);
    return c;
}
fragment float4 shade(Corner c [[stage_in]], texture2d<float> image [[texture(0)]], sampler how [[sampler(0)]], constant float &alpha [[buffer(0)]]) {
    return float4(image.sample(how, c.at).rgb, alpha);
}
"""
if len(sys.argv) > 1:
    image = ag.MetalTextureLoad(sys.argv[1], mipmaps=True, label="image")
else:       # a chequered one
    image = ag.MetalTexture(64, 64, b"".join(b"\xff\xff\xff\xff" if (x // 8 + y // 8) % 2 else b"\xff\0\0\xff" for y in range(64) for x in range(64)),
                            mipmaps=True, label="image")
library = ag.MetalCompile(SOURCE)
pipeline = ag.MetalRenderPipeline(ag.MetalFunction(library, "corner"), ag.MetalFunction(library, "shade"), blend="alpha")
sampler = ag.MetalSampler(filter="linear", mip="linear", address="repeat", anisotropy=4)
picture = ag.MetalTexture(200, 100, label="picture")
target = ag.MetalRenderPass(picture, clear=(0, 0, 1, 1))
work = ag.MetalBegin(label="quad")
if image.mipmapLevelCount() > 1:
    ag.MetalEncode(work, "blit", lambda encoder: encoder.generateMipmapsForTexture_(image))
for x, alpha in ((0, 1.0), (100, 0.5)):
    ag.MetalEncodeDraw(work, target, pipeline, 4, 0.8, fragment=(alpha,), textures=(image,), samplers=(sampler,), primitive="triangleStrip",
                       viewport=(x, 0, 100, 100, 0, 1), scissor=(x, 0, 100, 100), label="quad at %d" % x)
ag.MetalWait(ag.MetalCommit(work))

path = sys.argv[2] if len(sys.argv) > 2 else "quad.png"
ag.MetalTextureSave(picture, path)
pixels, last = ag.MetalTextureRead(picture), image.mipmapLevelCount() - 1
assert pixels[:4] == b"\0\0\xff\xff"
if len(sys.argv) < 2:       # the smallest mipmap is the mean of the picture
    assert all(abs(a - b) <= 1 for a, b in zip(ag.MetalTextureRead(image, level=last), (255, 128, 128, 255)))
if "fakeobjc" not in sys.modules:       # the stand-in records draws, it does not rasterise them
    assert pixels[4 * (50 * 200 + 50):][:4] != pixels[:4], "nothing was drawn"
print("%s: %d mipmap levels, smallest %s" % (path, last + 1, tuple(ag.MetalTextureRead(image, level=last))))
