"""The styles and the script of a run's page: progress, the slider through its grids, events."""

STYLE = """
.bar{height:3px;background:var(--line);margin:2rem 0 .6rem}
.bar i{display:block;height:100%;background:var(--accent)}
.state{color:var(--quiet);font-size:.875rem}
.pair{display:grid;grid-template-columns:1fr 1fr;gap:1.25rem;margin-top:1.25rem}
.pair.wide{grid-template-columns:1fr}
.pair figcaption{font-size:.875rem;color:var(--quiet);margin-bottom:.4rem}
.pair b{color:var(--ink);font-weight:600}
.wide img{min-width:34rem}
.slide{display:none;align-items:center;gap:1rem;margin-top:1rem;font-size:.875rem;color:var(--quiet)}
.js .slide{display:flex}
input[type=range]{flex:1;accent-color:var(--accent);height:1.75rem;min-width:0}
.js .rest{display:none}
.rest figure{margin-top:1rem}
ol.events{list-style:none;margin-top:1rem}
ol.events li{display:grid;grid-template-columns:6.5rem 8rem 1fr;gap:1rem;padding:.45rem 0;font-size:.9375rem;
border-top:1px solid var(--line)}
ol.events p{overflow-wrap:anywhere}
ol.events span{color:var(--quiet);white-space:nowrap}
@media(max-width:46rem){.pair{grid-template-columns:1fr}ol.events li{grid-template-columns:auto 1fr;
gap:.1rem 1rem}ol.events p{grid-column:1/-1}}
@media print{.slide{display:none!important}.rest{display:block!important}}
"""

SCRIPT = """
const range=document.querySelector('.slide input');
if(range){const view=document.querySelector('.now'),name=document.querySelector('.now-step'),grids=[
  ...document.querySelectorAll('.grid')].map(
  image=>({source:image.getAttribute('src'),step:image.dataset.step}));
  const order=grids.sort((a,b)=>a.step-b.step);
  range.max=order.length-1;range.value=order.length-1;
  range.oninput=()=>{const grid=order[range.value];view.src=grid.source;
    name.textContent='step '+Number(grid.step).toLocaleString('en')}}
"""
